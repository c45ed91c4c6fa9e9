"""A policy's step with every prompt computed once, beside whole rows and plain TRL.

    python benchmarks/prompts_cpu.py [--model FOLDER] [--layers 30] [--rounds 3] [--processor-time] [--no-memory]
                                     [--no-head] [--results DIR]

Float32, forward and backward, the head frozen, on a model in the shape of SmolLM2-135M with random weights, or one
from a folder. Pairs with prompts as long as a response, twice and four times as long, a group of eight, and rows that
have nothing in common. "of tokens" is the speed-up over the ratio of tokens that are computed, "of the most" over the
ratio of multiplications: the head's are not shared, and of attention's fewer are than of the layers'. `--no-head` times
the layers alone, of which two are enough.
"""

import argparse
import time
from pathlib import Path

import torch
import transformers
import trl

from prefuse._display import tables
from prefuse.bench import machine, memory, prompts, results, timing

MEBIBYTE = 1 << 20
SHAPES = {
    "pair of 256 + 256": prompts.Shape(256, 256, 2, 1),
    "pair of 341 + 171": prompts.Shape(341, 171, 2, 1),
    "pair of 410 + 102": prompts.Shape(410, 102, 2, 1),
    "pair of 1638 + 410": prompts.Shape(1638, 410, 2, 1),
    "group of 8, 128 + 128": prompts.Shape(128, 128, 8, 1),
    "nothing shared, 512": prompts.Shape(0, 512, 2, 1),
}
WRONG = 2e-3  # nats of a response's log-probability, in float32


def main() -> None:
    options = parse()
    transformers.logging.set_verbosity_error()
    about = machine.describe() | {"trl": trl.__version__, "transformers": transformers.__version__}
    print(about)
    model = prompts.causal_lm(options.model, options.layers)
    cases = [case for title in options.shapes for case in measure(options, model, title)]
    what = "head frozen" if options.head else "the layers alone"
    report = {
        "comparison": f"a policy's step with shared prompts, float32, {what}",
        "model": "random weights in the shape of SmolLM2-135M" if options.model is None else Path(options.model).name,
        "layers": model.config.num_hidden_layers,
        "clock": "processor time" if options.processor_time else "wall clock",
        "machine": about,
        "cases": cases,
    }
    print(results.write(options.results, "prompts_cpu" if options.head else "prompts_layers_cpu", report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder of a causal LM; none: random weights")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="NAME")
    parser.add_argument("--hands", nargs="+", default=list(prompts.HANDS), choices=prompts.HANDS, metavar="NAME")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, where other programs run too")
    parser.add_argument("--no-head", dest="head", action="store_false", help="the layers alone, without memory")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not options.head:
        options.memory = False
        options.hands = [name for name in options.hands if name in (prompts.WHOLE, prompts.SHARED)]
    return options


def measure(options: argparse.Namespace, model: torch.nn.Module, title: str) -> list[dict[str, object]]:
    shape = SHAPES[title]
    made = prompts.batch(shape, model.config.vocab_size)
    steps = {name: prompts.step(name, model, made, options.head) for name in options.hands}
    right = steps[options.hands[0]]()
    for name, step in steps.items():
        if not float((step() - right).abs().max()) < WRONG:
            raise SystemExit(f"{name} is wrong on {title}")
    clock = time.process_time if options.processor_time else time.perf_counter
    timings = timing.in_rounds(steps, options.rounds, clock)
    whole = timings[options.hands[0]]
    cases = [
        {
            "shape": title,
            "hand": name,
            "tokens_whole": shape.whole,
            "tokens_packed": shape.packed,
            "seconds": timings[name].as_dict(),
            "speed_up": whole.median / timings[name].median,
            "speed_up_fastest": whole.fastest / timings[name].fastest,
            "most": prompts.most(shape, model, options.head),
            "peak_extra_bytes": peak(options, name, shape),
        }
        for name in steps
    ]
    ratio = shape.whole / shape.packed if shape.prompt else 1.0
    rows = [
        (
            case["hand"],
            f"{case['seconds']['median']:.2f}",
            f"{case['speed_up']:.2f}",
            f"{case['speed_up_fastest']:.2f}",
            f"{case['speed_up_fastest'] / ratio:.2f}",
            f"{case['speed_up_fastest'] / case['most']:.2f}",
            "" if case["peak_extra_bytes"] is None else f"{case['peak_extra_bytes'] / MEBIBYTE:.0f}",
        )
        for case in cases
    ]
    header = ("hand", "s", "speed-up (higher is better)", "of the fastest", "of tokens", "of the most", "MiB")
    most = cases[0]["most"]
    caption = f"{title}: {shape.whole} tokens, {shape.packed} with prompts once ({ratio:.2f}; at most {most:.2f})"
    tables.show(caption, header, rows)
    return cases


def peak(options: argparse.Namespace, name: str, shape: prompts.Shape) -> int | None:
    if not options.memory:
        return None
    own = {"folder": options.model, "layers": options.layers, "shape": list(shape)}
    return memory.peak_extra_bytes("prefuse.bench.prompts:run", name=name, **own)


if __name__ == "__main__":
    main()
