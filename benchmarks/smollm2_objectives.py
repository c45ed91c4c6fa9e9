"""Eight objectives on SmolLM2-135M-Instruct from the same start: likelihoods, divergence, length of answers.

    python benchmarks/smollm2_objectives.py [--steps 10] [--pairs 2] [--rate 3e-4] [--results DIR] [--figure FILE]

Chosen are short answers of our own, rejected the model's (prefuse.demo.pretrained.questions). Training and held-out
topics differ. It takes about half a minute of processor time a piece; the results are shown by
examples/notebooks/07_objectives_on_a_real_model.ipynb.
"""

import argparse
import random
from dataclasses import asdict
from pathlib import Path

import torch

from prefuse import objectives, viz
from prefuse.bench import machine, results
from prefuse.demo.batches import padded
from prefuse.demo.pretrained import answers, questions, source
from prefuse.demo.pretrained.compare import compare
from prefuse.demo.pretrained.encoding import Pair, assistant, encode, user
from prefuse.demo.pretrained.policy import with_lora

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
EVERY = 5
HELD_OUT = 6


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model, tokenizer = source.load(source.SMOLLM2)
    asked = questions.questions(0.25)
    rng = random.Random(0)
    training = rng.sample(asked.training, options.steps * options.pairs)
    held_out = rng.sample(asked.topics, HELD_OUT)
    drawn = answers.draw(model, tokenizer, [user(one.text) for one in (*training, *held_out)], 0)
    pairs = [
        Pair(user(one.text), assistant(one.answer), assistant(said.text), (True, said.complete))
        for one, said in zip((*training, *held_out), drawn, strict=True)
    ]
    encoded = encode(pairs, tokenizer, 256)
    passes = with_lora(model, tokenizer, 0, share_prompts=True)
    batches = [
        padded(encoded[start : start + options.pairs], passes.pad) for start in range(0, len(training), options.pairs)
    ]
    kept = padded(encoded[len(training) :], passes.pad)
    prompts = [user(one.text) for one in held_out]
    found = compare(EIGHT, passes, tokenizer, batches, kept, prompts, rate=options.rate, every=EVERY)
    report = {
        "comparison": "objectives on SmolLM2-135M-Instruct, LoRA",
        "settings": {name: getattr(options, name) for name in ("steps", "pairs", "rate", "threads")},
        "objectives": {name: repr(objective) for name, objective in EIGHT.items()},
        "prompts": [one.text for one in held_out],
        "before": [said.text for said in drawn[len(training) :]],
        "before_tokens": [len(said.ids) for said in drawn[len(training) :]],
        "machine": machine.describe(),
        "courses": {name: asdict(course) for name, course in found.items()},
    }
    print(results.write(options.results, "smollm2_objectives", report))
    for name, course in found.items():
        print(name, [f"{value:.1f}" for value in course.chosen], [f"{value:.1f}" for value in course.rejected])
    if options.figure is not None:
        histories = {name: {"chosen": one.chosen, "rejected": one.rejected} for name, one in found.items()}
        viz.likelihoods(histories).savefig(options.figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=2, help="per step")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--figure", type=Path, help="an SVG or PNG of the likelihoods")
    return parser.parse_args()


if __name__ == "__main__":
    main()
