"""How columns and hyper-parameters are written in a formula."""

from __future__ import annotations

import re

GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
)
ROLES = {"chosen": "w", "rejected": "l"}


def parameter(name: str) -> str:
    r"""Return a hyper-parameter's symbol: `\beta` for `beta`, `\beta_{w}` for `beta_chosen`, else upright words."""
    if name.endswith("*"):
        return rf"w_{{{word(name[:-1])}}}"
    head, _, rest = name.rpartition(".")[2].partition("_")
    if name in ("label_smoothing", "epsilon"):
        return r"\varepsilon"
    if GREEK.fullmatch(head):
        return rf"\{head}" + (f"_{{{ROLES.get(rest) or word(rest)}}}" if rest else "")
    return name if len(name) == 1 else word(name)


def word(name: str) -> str:
    r"""Return a name set upright, its underscores kept readable."""
    return rf"\mathrm{{{name.replace('_', chr(92) + '_')}}}"


def column(argument: str, role: str | None = None) -> str:
    """Return the symbol of a column the objective named itself."""
    return word(argument) + response_mark(role)


def response(role: str | None) -> str:
    """Return the symbol of a role's response."""
    return (
        f"y_{{{ROLES.get(role, role)}}}"
        if role and len(ROLES.get(role, role)) > 1
        else (f"y_{ROLES.get(role, role)}" if role else "y")
    )


def response_mark(role: str | None) -> str:
    """Return the index that ties a symbol to a role."""
    if role is None:
        return ""
    mark = ROLES.get(role, role)
    return f"_{mark}" if len(mark) == 1 else rf"_{{\mathrm{{{mark}}}}}"


def log_probability(role: str | None, reference: bool, token: bool) -> str:
    r"""Return `\log\pi_\theta(y_w)` and its relatives; a token's is indexed by its position."""
    model = r"\mathrm{ref}" if reference else r"\theta"
    model = f"{{{model}}}" if reference else model
    mark = ROLES.get(role, role) if role else ""
    index = ",".join(part for part in (mark, "t" if token else "") if part)
    symbol = "y" if not index else f"y_{index}" if len(index) == 1 else f"y_{{{index}}}"
    return rf"\log\pi_{model}({symbol})"


def length(role: str | None) -> str:
    """Return the symbol of a response's length."""
    return f"|{response(role)}|"
