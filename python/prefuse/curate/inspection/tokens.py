"""Checks that need a tokenizer, of some of the rows: prompts and responses as a trainer's tokens.

Text is tokenised as TRL's trainers do: the prompt alone, and prompt and response together with the end-of-sequence
token behind them. Messages go through the chat template, the prompt with the generation prompt behind it, and the
tokenizer adds nothing to what the template writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefuse._display.progress import track
from prefuse.curate._rows import Indices
from prefuse.curate.inspection.data import Data, content_of
from prefuse.curate.inspection.lengths import bias, capped
from prefuse.curate.inspection.results import EXAMPLES, Check, Example, short
from prefuse.curate.inspection.tokenizers import Used
from prefuse.packing.tree import prefix_tree

_BATCH = 512
_SANE = 1_000_000
"""From here on a tokenizer's model_max_length says that none is known."""
CAUSES = {
    "indentation": (
        "begin with a blank or newline, which merges with the end of the prompt",
        "strip blanks and newlines from the beginning of responses, or leave at most one blank there",
    ),
    "blank": (
        "come after a prompt that ends with a blank, which is a token of its own only there",
        "strip blanks from the end of prompts, and begin responses with one",
    ),
    "template": (
        "follow a prompt that the chat template writes otherwise when it stands alone",
        "use a chat template that writes the prompt the same way with and without a response",
    ),
    "ending": (
        "follow a prompt behind which the tokenizer puts a special token",
        "use a tokenizer that puts nothing behind a text (add_eos_token=False)",
    ),
    "merge": (
        "merge with the last token of the prompt",
        "begin responses with a blank, or end prompts with a newline",
    ),
}
"""Why a prompt's tokens are not what the whole begins with: how it is said, and what to do."""


@dataclass(frozen=True)
class Tokenised:
    """Sampled rows as tokens; response i is `responses[i]` of the data.

    Attributes:
        responses: those that were tokenised: of rows that can be rendered, and not missing.
        prompts: by row, the text and tokens of a prompt alone.
        wholes: of each response, the text and tokens of prompt and response together.
        failed: by row, why it has no tokens: an error of the template, or text that is no Unicode.
    """

    data: Data
    used: Used
    sample: Indices
    responses: Indices
    prompts: dict[int, tuple[str, NDArray[np.int64]]]
    wholes: list[tuple[str, NDArray[np.int64]]]
    failed: dict[int, str]

    @property
    def tokenizer(self) -> Any:
        """Of transformers."""
        return self.used.tokenizer

    @cached_property
    def shared(self) -> Indices:
        """How many leading tokens prompt and whole have in common, of each response."""
        pairs = zip(self.responses.tolist(), self.wholes, strict=True)
        return np.array(
            [_common(self.prompts[int(self.data.rows[index])][1], ids) for index, (_, ids) in pairs], np.int64
        )

    @property
    def lengths(self) -> Indices:
        """Tokens of each response: what comes after the shared beginning."""
        return self.wholes_lengths - self.shared

    @cached_property
    def wholes_lengths(self) -> Indices:
        """Tokens of each response with its prompt."""
        return np.array([len(ids) for _, ids in self.wholes], np.int64)

    def by_role(self) -> Iterator[tuple[str, Indices]]:
        """Which of the tokenised responses have a role."""
        for role, indices in self.data.roles.items():
            yield role, np.flatnonzero(np.isin(self.responses, indices))

    def by_row(self) -> Iterator[tuple[int, list[int]]]:
        """A row, and which of the tokenised responses are its."""
        rows = self.data.rows[self.responses]
        order = np.argsort(rows, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if len(group):
                yield int(rows[group[0]]), group.tolist()


def tokenised(data: Data, used: Used, sample: Indices) -> Tokenised:
    """Tokenises the rows of a sample."""
    prompts: dict[int, str] = {}
    texts: list[str] = []
    responses: list[int] = []
    failed: dict[int, str] = {}
    for row in sample.tolist():
        indices = [index for index in data.of_row(row) if data.responses[index] is not None]
        try:
            prompt, wholes = _written(data, used, row, indices)
            "".join((prompt, *wholes)).encode()  # half of a surrogate pair is no text
        except Exception as error:  # a chat template is a program of someone else's
            failed[row] = f"{type(error).__name__}: {error}"
            continue
        prompts[row] = prompt
        texts += wholes
        responses += indices
    ids = iter(_encoded(used.tokenizer, [*prompts.values(), *texts], special=not data.messages))
    tokens = {row: (text, next(ids)) for row, text in prompts.items()}
    return Tokenised(
        data, used, sample, np.array(responses, np.int64), tokens, list(zip(texts, ids, strict=True)), failed
    )


def _written(data: Data, used: Used, row: int, indices: Sequence[int]) -> tuple[str, list[str]]:
    """The prompt of a row as text, and with each response."""
    prompt = data.prompts[row]
    if data.messages:
        prompt, options = prompt or [], data.template_options[row] if data.template_options else {}
        alone = used.written(prompt, prompt=True, **options) if prompt else ""
        return alone, [used.written(prompt + data.responses[index], **options) for index in indices]
    end = used.tokenizer.eos_token or ""
    wholes = [(prompt or "") + data.responses[index] for index in indices]
    return prompt or "", [text if text.endswith(end) else text + end for text in wholes]


def _encoded(tokenizer: Any, texts: Sequence[str], special: bool) -> Iterator[NDArray[np.int64]]:
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    for batch in track(batches, "tokens"):
        found = tokenizer(list(batch), add_special_tokens=special)["input_ids"]
        yield from (np.asarray(ids, np.int64) for ids in found)


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many leading tokens are the same."""
    size = min(len(first), len(second))
    apart = first[:size] != second[:size]
    return int(apart.argmax()) if apart.any() else size


def prefix(given: Tokenised) -> Check:
    """Prompts whose tokens are not what prompt and response together begin with."""
    rows = given.data.rows[given.responses].tolist()
    found: dict[int, tuple[str, Example]] = {}
    ends = _puts_behind(given.tokenizer) and not given.data.messages
    for at, row in enumerate(rows):
        text, ids = given.prompts[row]
        if row not in found and given.shared[at] < len(ids):
            whole, tokens = given.wholes[at]
            cause = _cause(given.data, text, whole, int(given.responses[at]), ends)
            start = int(given.shared[at])
            pieces = [given.tokenizer.convert_ids_to_tokens(part[start:][:4].tolist()) for part in (ids, tokens)]
            parts = f"{short(text[-30:])} ends in {pieces[0]}, with the response it goes on as {pieces[1]}"
            found[row] = cause, Example(row, parts)
    causes = Counter(cause for cause, _ in found.values())
    return Check(
        "prefix",
        len(found),
        len(given.prompts),
        "; ".join(f"responses that {CAUSES[cause][0]}: {count} rows" for cause, count in causes.most_common())
        or "the tokens of a prompt are those that prompt and response begin with",
        CAUSES[causes.most_common(1)[0][0]][1] if causes else "",
        tuple(one for _, one in list(found.values())[:EXAMPLES]),
        {cause: float(count) for cause, count in causes.items()},
    )


def _cause(data: Data, prompt: str, whole: str, response: int, ends: bool) -> str:
    content = data.responses[response]
    start = (content_of(content[0]) if content else "") if data.messages else content
    if data.messages and not whole.startswith(prompt):
        return "template"
    if ends:
        return "ending"
    if start[:1].isspace():
        return "indentation"
    return "blank" if prompt[-1:].isspace() else "merge"


def _puts_behind(tokenizer: Any) -> bool:
    """Whether the tokenizer puts special tokens behind a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(bare) and tokenizer("a")["input_ids"][-1] != bare[-1]


def template(given: Tokenised) -> Check:
    """What chat template and special tokens do: begin twice, do not end, appear in responses, lose content."""
    data = given.data
    if data.messages and not given.used.template:
        return Check(
            "template",
            len(given.sample),
            len(given.sample),
            "the tokenizer has no chat template, and the data is messages",
            "use the tokenizer of an instruction-tuned model, or set tokenizer.chat_template",
        )
    faults = _special_faults(given)
    if data.messages:
        faults |= _lost(given)
    faults["cannot be written as tokens"] = dict(given.failed)
    parts = [f"{len(rows)} {what}" for what, rows in faults.items() if rows]
    rows = {row: f"{what}: {text}" for what, found in faults.items() for row, text in found.items()}
    what = "; ".join(parts) or "special tokens are where they belong"
    if data.messages and given.wholes:
        what += f"; the template adds {_added(given):.0f} tokens to a response with its prompt"
        what += _twice(given) + _unsure(given)
    return Check(
        "template",
        len(rows),
        len(given.sample),
        what,
        "look at tokenizer.apply_chat_template(…, tokenize=False) of the examples, and set the template, bos_token or "
        "eos_token right" * bool(rows),
        tuple(Example(row, text) for row, text in list(rows.items())[:EXAMPLES]),
        {what: float(len(found)) for what, found in faults.items()}
        | ({"tokens added": _added(given)} if data.messages and given.wholes else {}),
    )


def _special_faults(given: Tokenised) -> dict[str, dict[int, str]]:
    data, tokenizer = given.data, given.tokenizer
    bos = tokenizer.bos_token_id
    twice: dict[int, str] = {}
    endless: dict[int, str] = {}
    inside: dict[int, str] = {}
    for index, (text, ids) in zip(given.responses.tolist(), given.wholes, strict=True):
        row = int(data.rows[index])
        if bos is not None and ids[:2].tolist() == [bos, bos]:
            twice[row] = short(text, 40)
        if not _ends(given, index, text, ids):
            endless[row] = short(text[-30:])
        said = data.texts[index].removesuffix(tokenizer.eos_token or "")
        if mark := next((mark for mark in given.used.marks if mark in said), None):
            inside[row] = mark
    ends = " or ".join(map(repr, sorted(_stops(given.used))))
    end = f"lack {ends} at the end" if ends else "have no end, as the tokenizer has no eos_token"
    return {"begin with bos twice": twice, end: endless, "have a special token inside a response": inside}


def _stops(used: Used) -> frozenset[str]:
    """The tokens that end a response: the model's, or else the tokenizer's."""
    return used.stops or frozenset(filter(None, [used.tokenizer.eos_token]))


def _ends(given: Tokenised, index: int, text: str, ids: NDArray[np.int64]) -> bool:
    """Whether the response's last words are followed by a token at which the model stops.

    Where only the tokenizer's eos is known, another special token of the template will do: models may stop at several.
    """
    tokenizer, stops = given.tokenizer, _stops(given.used)
    if not given.data.messages:
        return tokenizer.eos_token_id in ids[-2:].tolist()  # what the tokenizer itself puts behind may follow
    tail = _tail(given.data, index, text)
    return any(stop in tail for stop in stops) or (not given.used.stops and _other_end(given, tail) is not None)


def _tail(data: Data, index: int, text: str) -> str:
    """What the template writes behind a response."""
    said = content_of(data.responses[index][-1]).strip() if data.responses[index] else ""
    at = text.rfind(said)
    return text[at + len(said) :] if said and at >= 0 else text[-32:]


def _other_end(given: Tokenised, tail: str) -> str | None:
    """A special token in it that is not known to stop the model."""
    return next((mark for mark in sorted(given.used.marks - _stops(given.used)) if mark in tail), None)


def _unsure(given: Tokenised) -> str:
    """A warning where responses end with a special token that is not the tokenizer's eos."""
    text = given.wholes[0][0]
    tail = _tail(given.data, int(given.responses[0]), text)
    eos = given.tokenizer.eos_token
    if given.used.stops or (eos and eos in tail) or (other := _other_end(given, tail)) is None:
        return ""
    return f"; responses end with {other!r} and not with eos, {eos!r}: generation must stop there, too"


def _lost(given: Tokenised) -> dict[str, dict[int, str]]:
    """By role, rows of which the template leaves a message's content out."""
    faults: dict[str, dict[int, str]] = {}
    for index, (text, _) in zip(given.responses.tolist(), given.wholes, strict=True):
        row = int(given.data.rows[index])
        for message in (given.data.prompts[row] or []) + given.data.responses[index]:
            content = message.get("content")
            if isinstance(content, str) and content.strip() not in text:
                what = f"lose what the {message.get('role')} says"
                faults.setdefault(what, {})[row] = short(content)
    return faults


def _added(given: Tokenised, most: int = 256) -> float:
    """How many tokens a response with its prompt has beyond those of its messages' contents, in the mean."""
    extra = []
    for index, (_, ids) in list(zip(given.responses.tolist(), given.wholes, strict=True))[:most]:
        messages = (given.data.prompts[int(given.data.rows[index])] or []) + given.data.responses[index]
        contents = given.tokenizer([content_of(message) for message in messages], add_special_tokens=False)
        extra.append(len(ids) - sum(map(len, contents["input_ids"])))
    return float(np.mean(extra))


def _twice(given: Tokenised) -> str:
    """A warning for trainers that tokenise the template's text with special tokens."""
    bos = given.tokenizer.bos_token_id
    ids = given.tokenizer(given.wholes[0][0])["input_ids"]
    doubled = bos is not None and ids[:2] == [bos, bos]
    return " (tokenise its text with add_special_tokens=False: bos is in it)" if doubled else ""


def same_tokens(given: Tokenised) -> dict[int, str]:
    """Rows whose responses differ as text, and not as tokens."""
    found = {}
    for row, group in given.by_row():
        keys = {given.data.keys[given.responses[at]] for at in group}
        if len(keys) > 1 and len({given.wholes[at][1].tobytes() for at in group}) == 1:
            found[row] = " | ".join(short(given.data.texts[given.responses[at]]) for at in group[:2])
    return found


def length(given: Tokenised) -> Check:
    """The check `length` in tokens of the sampled rows: what sums of log-probabilities count."""
    data = given.data
    lengths = np.full(len(data.responses), -1, np.int64)
    lengths[given.responses] = given.lengths
    if data.kind == "labelled":
        good, bad = (lengths[data.roles[role]] for role in ("desirable", "undesirable"))
        return bias(good[good >= 0], bad[bad >= 0], "tokens", len(given.sample), paired=False)
    better, worse = data.preferred()
    there = (lengths[better] >= 0) & (lengths[worse] >= 0)
    return bias(lengths[better[there]], lengths[worse[there]], "tokens", len(given.sample))


def cut(given: Tokenised, max_length: int | None) -> tuple[Any, list[str]]:
    """Which of the data's responses are cut, by their number of tokens or at `max_length`; and how that is said."""
    if max_length is None:
        limit = getattr(given.tokenizer, "model_max_length", None)
        max_length = limit if isinstance(limit, int) and limit < _SANE else None
    marked = np.zeros(len(given.data.responses), bool)
    notes = []
    for role, places in given.by_role():
        texts = [given.data.texts[index] for index in given.responses[places].tolist()]
        found, note = capped(texts, given.lengths[places], "tokens", 16)
        marked[given.responses[places[found]]] = True
        notes += [f"{note} of {role}"] if note else []
    if max_length is not None and (over := given.wholes_lengths > max_length).any():
        marked[given.responses[over]] = True
        notes.append(f"{int(over.sum())} are longer than {max_length} tokens with their prompt")
    return marked, notes


def repeated_tokens(given: Tokenised) -> float:
    """The share of a row's tokens that `share_prompts` computes once instead of for each response."""
    total = int(given.wholes_lengths.sum())
    groups = ([given.wholes[at][1] for at in group] for _, group in given.by_row())
    once = sum(prefix_tree(rows)[0].tokens for rows in groups)
    return 1.0 - once / total if total else 0.0
