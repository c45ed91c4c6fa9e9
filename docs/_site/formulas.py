"""Formulas as MathML, which browsers draw themselves: the site needs no script and no network for them."""

import re

import latex2mathml.converter

CODE = r"^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]+`"
BLOCK = r"\$\$(?P<block>.+?)\$\$"
INLINE = r"(?<![\\$\w])\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?)\$(?![\w$])"
PARTS = re.compile(f"{CODE}|{BLOCK}|{INLINE}", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace ``$…$`` and ``$$…$$`` outside of code."""
    return PARTS.sub(_converted, markdown)


def _converted(match: re.Match[str]) -> str:
    if block := match["block"]:
        return f'<div class="formula">{_mathml(block, "block")}</div>'
    if inline := match["inline"]:
        return _mathml(inline, "inline")
    return match[0]


def _mathml(latex: str, display: str) -> str:
    return latex2mathml.converter.convert(" ".join(latex.split()), display=display)
