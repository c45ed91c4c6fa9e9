"""What an objective's function is given: the pair, response, group or token it speaks about."""

from __future__ import annotations

from . import notation
from .expression import Expression, Pairs, batch_total, binary, build, named, read_column
from .kinds import BATCH, STANDARD, TOKEN, token_space
from .trace import NewRole, Trace

# Standard columns are attributes of a view; asked for by name they are the same columns.
_ALIASES = frozenset(STANDARD)


class BatchView:
    """The whole batch: `batch["delta"]` is a single number the caller gives at each call."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __getitem__(self, name: str) -> Expression:
        return read_column(self._trace, name, BATCH)


class ResponseView:
    """One response: its log-probabilities (nats, summed over its tokens), its length, and any column by name.

    The caller gives `logps`, `ref_logps`, `lengths` (with the role in front in a pair: `chosen_logps`,
    `ref_chosen_logps`, `chosen_lengths`). Where only token columns are given, log-probabilities are their sums and the
    length is the token count.
    """

    def __init__(self, trace: Trace, role: str | None = None) -> None:
        self._trace = trace
        self._role = role

    @property
    def logp(self) -> Expression:
        """log π(y | x) of the policy: the sum over the response's tokens, in nats."""
        return self._log_probability("logp")

    @property
    def ref_logp(self) -> Expression:
        """log π_ref(y | x): the same sum under the reference model."""
        return self._log_probability("ref_logp")

    @property
    def logratio(self) -> Expression:
        """Log-ratio h = log π(y | x) − log π_ref(y | x), in nats."""
        return self.logp - self.ref_logp

    @property
    def length(self) -> Expression:
        """Number of tokens of the response, at least 1 (so that an empty response has average 0, not NaN)."""
        trace, role = self._trace, self._role
        trace.touch(role, "length")
        argument = trace.kind.argument(role, "response", "length")
        if trace.kind is not TOKEN and (trace.has(argument) or not self._has_tokens()):
            count = read_column(trace, argument, trace.kind.response, notation.length(role))
        else:
            count = build(trace, trace.graph.count, token_space(role), trace.kind.response)
        symbol = notation.length(role)
        named(count, argument, symbol)
        return named(binary("clamp_min", count, 1.0), argument, symbol)

    @property
    def batch_length(self) -> Expression:
        """Number of tokens of all these responses in the batch: the sum of `length`; a `total`."""
        return self.total("batch_length", self.length.sum("batch"))

    @property
    def avg_logp(self) -> Expression:
        """Mean log-probability per token, logp / length, in nats."""
        return self.logp / self.length

    @property
    def token(self) -> TokenView:
        """The tokens of this response."""
        return TokenView(self._trace, self._role)

    @property
    def group(self) -> GroupView:
        """The group (prompt) this response belongs to."""
        return GroupView(self._trace)

    @property
    def position(self) -> Expression:
        """0-based position of the response in its group."""
        self._trace.look_at("group")
        return build(self._trace, self._trace.graph.position, self._trace.kind.response)

    @property
    def batch(self) -> BatchView:
        """The whole batch."""
        return BatchView(self._trace)

    def total(self, name: str, value: Expression) -> Expression:
        """Return a number of the batch, such as `x.sum("batch")` of a count; or, where the caller gives it, that.

        It goes by `name`, with the role in front in a pair, and may not depend on log-probabilities. Divided by it, a
        batch that is spread over several calls gives what it would give in one: see `prefuse.batch_totals`.
        """
        return batch_total(self._trace, self._trace.kind.argument(self._role, "response", name), value)

    def __getitem__(self, name: str) -> Expression:
        if name in _ALIASES:
            return self.__getattribute__(name)  # type: ignore[no-any-return]
        kind, role = self._trace.kind, self._role
        argument = name if kind is TOKEN else kind.argument(role, "response", name)
        return read_column(self._trace, argument, kind.response, notation.column(name, role))

    def _log_probability(self, name: str) -> Expression:
        trace, role, kind = self._trace, self._role, self._trace.kind
        trace.touch(role, name)
        argument, symbol = kind.argument(role, "response", name), notation.log_probability(role, name != "logp", False)
        if not (kind is TOKEN or trace.sums(argument, kind.argument(role, "token", name))):
            return read_column(trace, argument, kind.response, symbol)
        total = TokenView(trace, role)[name].sum()
        return total if kind is TOKEN else named(total, argument, symbol)

    def _has_tokens(self) -> bool:
        prefix = f"{self._role}_" if self._role else ""
        return self._trace.has(f"{prefix}mask") or self._trace.has(f"{prefix}cu_seqlens")


class TokenView:
    """The tokens of a response: one value per scored token.

    The caller gives `token_logps`, `ref_token_logps` or `token_<name>` (`chosen_token_logps` … in a pair; without
    `token_` in a token objective), padded with a mask or packed with `cu_seqlens`.
    """

    def __init__(self, trace: Trace, role: str | None = None) -> None:
        if token_space(role) not in trace.spaces:
            raise NewRole(role)
        self._trace = trace
        self._role = role

    @property
    def logp(self) -> Expression:
        """log π(y_t | x, y_<t) of the policy, in nats."""
        return self["logp"]

    @property
    def ref_logp(self) -> Expression:
        """log π_ref(y_t | x, y_<t) of the reference model, in nats."""
        return self["ref_logp"]

    @property
    def logratio(self) -> Expression:
        """Log-ratio of one token, in nats."""
        return self.logp - self.ref_logp

    @property
    def position(self) -> Expression:
        """0-based position among the response's scored tokens."""
        return build(self._trace, self._trace.graph.position, token_space(self._role))

    @property
    def response(self) -> ResponseView:
        """The response this token belongs to."""
        return ResponseView(self._trace, self._role)

    @property
    def group(self) -> GroupView:
        """The group (prompt) this token's response belongs to."""
        return GroupView(self._trace)

    @property
    def batch(self) -> BatchView:
        """The whole batch."""
        return BatchView(self._trace)

    def __getitem__(self, name: str) -> Expression:
        trace, role = self._trace, self._role
        standard = name in ("logp", "ref_logp")
        if standard:
            trace.touch(role, name)
        symbol = notation.log_probability(role, name == "ref_logp", True) if standard else notation.column(name, role)
        return read_column(trace, trace.kind.argument(role, "token", name), token_space(role), symbol)


class GroupView:
    """A group: the responses to one prompt, in any number. Its own columns have one value per group."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @property
    def response(self) -> ResponseView:
        """The responses of the group."""
        return ResponseView(self._trace)

    @property
    def token(self) -> TokenView:
        """The tokens of the group's responses."""
        return TokenView(self._trace)

    @property
    def size(self) -> Expression:
        """Number of responses in the group."""
        return build(self._trace, self._trace.graph.count, self._trace.kind.response, "group")

    @property
    def batch(self) -> BatchView:
        """The whole batch."""
        return BatchView(self._trace)

    def pairs(self) -> Pairs:
        """All ordered pairs of the group's responses: `i, j = group.pairs()`, then `i(x) - j(x)`."""
        return Pairs(self._trace, self._trace.kind.response)

    def __getitem__(self, name: str) -> Expression:
        return read_column(self._trace, name, "group")


class PairView:
    """A preference pair: the chosen and the rejected response to one prompt, and further ones by name."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @property
    def chosen(self) -> ResponseView:
        """The preferred response."""
        return self.response("chosen")

    @property
    def rejected(self) -> ResponseView:
        """The other response."""
        return self.response("rejected")

    def response(self, role: str) -> ResponseView:
        """Return a response by its role; beyond chosen and rejected any word will do, e.g. "gold"."""
        if not role.isidentifier() or role in ("ref", "token"):
            raise self._trace.error(f"{role!r} cannot name a response; use a plain word such as 'gold'")
        return ResponseView(self._trace, role)

    @property
    def batch(self) -> BatchView:
        """The whole batch."""
        return BatchView(self._trace)

    def __getitem__(self, name: str) -> Expression:
        return read_column(self._trace, name, "group")


View = PairView | ResponseView | GroupView | TokenView


def view_of(trace: Trace) -> View:
    """Return what a function of this trace's kind takes."""
    views: dict[str, type[View]] = {"pair": PairView, "point": ResponseView, "group": GroupView, "token": TokenView}
    return views[trace.kind.name](trace)
