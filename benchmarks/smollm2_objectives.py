"""Eight objectives on SmolLM2-135M-Instruct from the same start: likelihoods, divergence, length of answers.

    python benchmarks/smollm2_objectives.py [--steps 60] [--pairs 4] [--rate 2e-4] [--results DIR] [--figure FILE]
    python benchmarks/smollm2_objectives.py --drawn docs/real-objectives.svg    # from the results, without a training

Chosen are short answers of our own, rejected the model's (prefuse.demo.pretrained.questions). Training and held-out
topics differ. It takes about four minutes of processor time an objective; results are written after each. They are
shown by examples/notebooks/07_objectives_on_a_real_model.ipynb and docs/benchmarks.md.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prefuse import objectives
from prefuse.bench import machine, results
from prefuse.demo.batches import Batch, Encoded, padded
from prefuse.demo.pretrained import answers, questions, source
from prefuse.demo.pretrained.compare import Course, HeldOut, compare
from prefuse.demo.pretrained.encoding import Pair, assistant, encode, user
from prefuse.demo.pretrained.policy import with_lora

NAME = "smollm2_objectives"
EIGHT = {
    "dpo": objectives.dpo(beta=0.1),
    "ipo": objectives.ipo(beta=0.1),
    "simpo": objectives.simpo(),
    "orpo": objectives.orpo(),
    "dpop": objectives.dpop(beta=0.1),
    "apo_zero": objectives.apo_zero(beta=0.1),
    "dpo + 0.1 sft": objectives.dpo(beta=0.1) + 0.1 * objectives.sft(nll="sum"),
    "sft": objectives.sft(),
}
EVERY, ANSWERS_EVERY = 6, 30
PAIRS, PROMPTS = 10, 16
"""Held-out pairs, and prompts to answer."""


def main() -> None:
    options = parse()
    if options.drawn is not None:
        (path,) = options.results.glob(f"{NAME}-*.json")
        draw(json.loads(path.read_text(encoding="utf-8")), options.drawn)
        return
    torch.set_num_threads(options.threads)
    model, tokenizer = source.load("smollm2")
    asked = questions.questions(0.25)
    rng = random.Random(0)
    once = min(len(asked.training) // options.pairs, options.steps) * options.pairs  # then again in another order
    training, held_out = rng.sample(asked.training, once), rng.sample(asked.topics, PROMPTS)
    drawn = answers.draw(model, tokenizer, [user(one.text) for one in (*training, *held_out)], 0)
    pairs = [
        Pair(user(one.text), assistant(one.answer), assistant(said.text), (True, said.complete))
        for one, said in zip((*training, *held_out), drawn, strict=True)
    ]
    encoded = encode(pairs, tokenizer, 256)
    passes = with_lora(model, tokenizer, 0, share_prompts=True)
    given = batches(encoded[:once], options, passes.pad)
    kept = HeldOut(
        padded(encoded[once : once + PAIRS], passes.pad),
        [user(one.text) for one in held_out],
        lambda place, answer: questions.follows_rule(answer.text, held_out[place].topic, answer.complete),
        EVERY,
        ANSWERS_EVERY,
    )
    report: dict[str, Any] = {
        "comparison": "objectives on SmolLM2-135M-Instruct, LoRA",
        "settings": {name: getattr(options, name) for name in ("steps", "pairs", "rate", "threads")}
        | {"training_pairs": once, "held_out_pairs": PAIRS, "prompts": PROMPTS, "temperature": answers.TEMPERATURE},
        "objectives": {name: repr(objective) for name, objective in EIGHT.items()},
        "prompts": [one.text for one in held_out],
        "before": [said.text for said in drawn[once:]],
        "machine": machine.describe(),
        "courses": {},
        "processor_seconds": {},
        "load": {},
    }
    since = time.process_time()

    def keep(name: str, course: Course) -> None:
        nonlocal since
        report["courses"][name] = asdict(course)
        report["processor_seconds"][name] = round(time.process_time() - since, 1)
        report["load"][name] = round(os.getloadavg()[0], 1)
        since = time.process_time()
        print(results.write(options.results, NAME, report), name, course, flush=True)

    compare(EIGHT, passes, tokenizer, given, kept, rate=options.rate, report=keep)
    if options.figure is not None:
        draw(report, options.figure)


def batches(pairs: Sequence[Encoded], options: argparse.Namespace, pad: int) -> list[Batch]:
    """One for each step: all pairs in one order, then in another."""
    rng, found = random.Random(1), []
    while len(found) < options.steps:
        order = rng.sample(pairs, len(pairs))
        found += [
            padded(order[start : start + options.pairs], pad)
            for start in range(0, len(order) - options.pairs + 1, options.pairs)
        ]
    return found[: options.steps]


def draw(report: dict[str, Any], path: Path) -> None:
    """Likelihoods of each objective; KL and length of answers of all in one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    courses = report["courses"]
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    grid = above.subplots(2, 4, sharex=True, sharey="row").ravel()
    for axes, (name, course) in zip(grid, courses.items(), strict=False):
        for role, colour in (("chosen", "C2"), ("rejected", "C3")):
            axes.plot(course["steps"], [value - course[role][0] for value in course[role]], color=colour, label=role)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_title(name, fontsize="medium")
    grid[0].legend(fontsize="small")
    above.supylabel("change of log-probability, nats")
    kl, length, follow = below.subplots(1, 3)
    for axes, steps, key, label in (
        (kl, "steps", "kl", "KL to the reference, nats per token"),
        (length, "answered", "answer_tokens", "tokens of an answer"),
        (follow, "answered", "follow", "answers that follow the rule"),
    ):
        for place, (name, course) in enumerate(courses.items()):
            axes.plot(course[steps], course[key], "-o", markersize=2, color=f"C{place}", label=name)
        axes.set_ylabel(label)
        axes.set_xlabel("step")
    kl.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=4, help="per step")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--figure", type=Path, help="an SVG or PNG of likelihoods, KL and answers")
    parser.add_argument("--drawn", type=Path, help="the same from results that are there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
