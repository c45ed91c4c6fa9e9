"""The four kinds of objective: which spaces each has, how levels are called, how arguments are named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BATCH = "batch"
STANDARD = {"logp": "logps", "ref_logp": "ref_logps", "length": "lengths"}


@dataclass(frozen=True)
class Kind:
    """One kind of objective.

    Attributes:
        name: `pair`, `point`, `group` or `token`.
        item: the space `.losses` lives in: one value per pair, per response or per group.
        response: the space of response columns.
        levels: what an author may call a space in `x.sum(to=...)`, and the space meant.
    """

    name: str
    item: str
    response: str
    levels: dict[str, str]

    def spaces(self, roles: Iterable[str]) -> dict[str, str]:
        """Return {space: parent} for these roles (only a pair objective has roles)."""
        if self.name == "pair":
            return {"group": BATCH} | {token_space(role): "group" for role in roles}
        return {"group": BATCH, "response": "group", "token": "response"}

    def level(self, space: str) -> str:
        """Return the word an author knows a space by."""
        if space.endswith("*" + space.partition("*")[0]):
            return "(i, j)"
        head, _, role = space.partition(":")
        if role:
            return f"token of {role}"
        return "pair" if self.name == "pair" and head == "group" else head

    def argument(self, role: str | None, level: str, name: str) -> str:
        """Return the argument a column is given under, in TRL's words.

        `level` is `token`, `response`, or anything coarser, whose columns go by their own name.
        """
        stem = STANDARD.get(name, name)
        if level not in ("token", "response"):
            return stem
        reference, stem = ("ref_", stem.removeprefix("ref_")) if name == "ref_logp" else ("", stem)
        prefix = f"{role}_" if role else ""
        token = "token_" if level == "token" and self.name != "token" else ""
        return f"{reference}{prefix}{token}{stem}"


PAIR = Kind("pair", "group", "group", {"response": "group", "pair": "group", "group": "group", "batch": BATCH})
POINT = Kind("point", "response", "response", {"response": "response", "group": "group", "batch": BATCH})
GROUP = Kind("group", "group", "response", POINT.levels)
TOKEN = Kind("token", "response", "response", POINT.levels)


def token_space(role: str | None) -> str:
    """Return the space of a role's tokens."""
    return f"token:{role}" if role else "token"


def pair_space(space: str) -> str:
    """Return the space of ordered pairs of elements of `space` that share a parent."""
    return f"{space}*{space}"
