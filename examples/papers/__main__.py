"""Runs the experiments and writes their figures and the page that shows them.

python examples/papers                 all of them, into docs/gallery and docs/gallery.md
python examples/papers copg egpo       some of them, figures only
python examples/papers --out folder    elsewhere
"""

import argparse
import importlib
import time
from pathlib import Path
from types import ModuleType

import lab

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__main__", "lab"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of gallery.md and gallery/")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no experiment {', '.join(sorted(unknown))}")
    figures = options.out / "gallery"
    figures.mkdir(parents=True, exist_ok=True)
    for name in options.names or NAMES:
        paper, start = importlib.import_module(name), time.perf_counter()
        lab.figure(paper, paper.main(), figures / f"{name}.svg")
        print(f"{name:16} {time.perf_counter() - start:5.1f} s")
    if not options.names:
        (options.out / "gallery.md").write_text(page([importlib.import_module(name) for name in NAMES]))


def page(papers: list[ModuleType]) -> str:
    """The gallery as Markdown: what each paper claims, and our figure of it."""
    return "\n\n".join([INTRODUCTION, *map(entry, papers)]) + "\n"


def entry(paper: ModuleType) -> str:
    source = paper.__doc__.split("\n", 1)[0].rstrip(".")
    script = f"examples/papers/{paper.__name__}.py"
    return (
        f"## {paper.TITLE}\n\n{paper.CLAIM}\n\n![{paper.TITLE}](gallery/{paper.__name__}.svg)\n\n"
        f"{source}: [{script}](../{script})."
    )


INTRODUCTION = """\
# Gallery: papers' claims at toy scale

Each figure is one claim of one paper, on a problem small enough to be solved exactly or in seconds: bandits, matrix
games, trees of two tokens. Losses and gradients are prefuse's own objectives, loops and samplers those of
`prefuse.outer` and `prefuse.curate`. Each script asserts its claim before it draws, and the tests run them all. What a
bandit shows is that the method does what its theory says; how much that is worth on a language model it does not show.

`make gallery` runs them and writes this page."""


if __name__ == "__main__":
    main()
