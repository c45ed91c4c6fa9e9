"""DPO on SmolLM2-135M-Instruct with dense and with sparse gradients of the head: losses and held-out accuracy by step.

    python benchmarks/smollm2_sparse.py [--steps 100] [--pairs 2] [--seeds 3] [--sparse 0.000244] [--results DIR]
                                        [--figure FILE]

LoRA, float32. Prompts are functions of the standard library, chosen their own docstrings, rejected another function's.
A seed decides the adapters, the order of the pairs, and how small probabilities are rounded. The dense and the sparse
run of a seed see the same batches, so that their difference is that of the gradients alone; what it is compared with is
how far the seeds are apart.
"""

import argparse
import statistics
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from prefuse import objectives, viz
from prefuse.bench import machine, results
from prefuse.demo.batches import padded
from prefuse.demo.pairs import make_pairs, split, stdlib_functions
from prefuse.demo.pretrained import source
from prefuse.demo.pretrained.encoding import Pair, assistant, encode, user
from prefuse.demo.pretrained.policy import with_lora
from prefuse.demo.scored import margins
from prefuse.demo.train import Step, prefer

DENSE, SPARSE = "dense", "sparse"
LONGEST = 160  # tokens of a row
WARM_UP = 5


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    functions = split(stdlib_functions(), 0.1)
    runs = {
        f"{name}, seed {seed}": train(options, functions, seed, options.sparse if name == SPARSE else None)
        for seed in range(options.seeds)
        for name in (DENSE, SPARSE)
    }
    report = {
        "comparison": "dense and sparse gradients of the head, DPO on SmolLM2-135M-Instruct, LoRA",
        "settings": {name: getattr(options, name) for name in ("steps", "pairs", "rate", "sparse", "held_out")},
        "machine": machine.describe(),
        "runs": runs,
        "differences": differences(runs, options.seeds),
    }
    print(results.write(options.results, "smollm2_sparse", report))
    print(report["differences"])
    if options.figure is not None:
        curves = {f"seed {seed}": {name: smoothed(runs[f"{name}, seed {seed}"]["loss"]) for name in (DENSE, SPARSE)}
                  for seed in range(options.seeds)}  # fmt: skip
        figure = viz.likelihoods(curves)
        figure.supylabel("loss (nats, mean of ten steps)", fontsize="medium")
        figure.savefig(options.figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=2, help="per step")
    parser.add_argument("--held-out", type=int, default=32, help="pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--sparse", type=float, default=2.0**-12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--figure", type=Path, help="an SVG or PNG of the losses")
    return parser.parse_args()


def train(options: argparse.Namespace, functions, seed: int, sparse: float | None) -> dict[str, object]:
    model, tokenizer = source.load("smollm2")
    passes = with_lora(model, tokenizer, seed, share_prompts=True, sparse=sparse)

    def batches(kept, count: int, own_seed: int) -> list:
        pairs = make_pairs(kept, own_seed)[: count * options.pairs]
        asked = [Pair(user(f"Write the docstring of {pair.prompt}"), *map(assistant, pair.responses)) for pair in pairs]
        encoded = encode(asked, tokenizer, LONGEST)
        size = options.pairs
        return [padded(encoded[start : start + size], passes.pad) for start in range(0, len(encoded), size)]

    objective = objectives.dpo(beta=0.1)
    training = batches(functions.training, options.steps, seed)
    held_out = batches(functions.unseen, -(-options.held_out // options.pairs), 0)
    history: list[Step] = []
    score = partial(passes.score, objective)
    rewarded = partial(passes.score, objective, compare=True)
    prefer(objective, passes.parameters, score, cycle(training), options.steps, options.rate, history.append,
           warm_up=WARM_UP)  # fmt: skip
    passes.model.eval()
    with torch.no_grad():
        found = torch.cat([margins(objective, rewarded(batch), batch) for batch in held_out])
    print(f"seed {seed}, sparse {sparse}: loss {history[-1].loss:.4f}, held out {(found > 0).double().mean():.3f}",
          flush=True)  # fmt: skip
    return {
        "loss": [step.loss for step in history],
        "margin": [step.margin for step in history],
        "held_out_accuracy": float((found > 0).double().mean()),
        "held_out_margin": float(found.mean()),
    }


def differences(runs: dict, seeds: int) -> dict[str, dict[str, float]]:
    """How far dense and sparse are apart (mean over seeds of the absolute difference), and how far the dense seeds."""

    def of(name: str, value) -> list[float]:
        return [value(runs[f"{name}, seed {seed}"]) for seed in range(seeds)]

    values = {
        "last_tenth_of_losses": lambda run: statistics.fmean(run["loss"][-max(1, len(run["loss"]) // 10) :]),
        "held_out_accuracy": lambda run: run["held_out_accuracy"],
        "held_out_margin": lambda run: run["held_out_margin"],
    }
    return {
        title: {
            "dense_mean": statistics.fmean(of(DENSE, value)),
            "sparse_mean": statistics.fmean(of(SPARSE, value)),
            "dense_spread": max(of(DENSE, value)) - min(of(DENSE, value)),
            "apart": statistics.fmean(abs(a - b) for a, b in zip(of(DENSE, value), of(SPARSE, value), strict=True)),
        }
        for title, value in values.items()
    }


def smoothed(values: list[float], over: int = 10) -> list[float]:
    """Means of the last ten, where fewer of those that are there."""
    return [statistics.fmean(values[max(0, at + 1 - over) : at + 1]) for at in range(len(values))]


if __name__ == "__main__":
    main()
