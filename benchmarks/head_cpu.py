"""The LM head of a DPO step on the CPU: prefuse beside what else is in use, over the time of the bare GEMMs.

    python benchmarks/head_cpu.py [--pairs 2] [--tokens 256] [--features 1024] [--vocabulary 65536] [--rounds 5]
                                  [--hands NAME …] [--results DIR]

The policy's pass, from hidden states and weight in bfloat16 to the loss and back, with the weight frozen (2 GEMMs) and
trained (3), all tokens scored and the first half of every response ignored, all in the same rounds. The bare GEMMs are
those of the tokens that are scored. Memory is that of the step with all tokens scored. Then how far the gradients are
from float64's, beside TRL's.
"""

import argparse
from pathlib import Path

import torch

from prefuse._display import tables
from prefuse.bench import head, machine, memory, quality, results, timing
from prefuse.linear.plans import WORKSPACE_BYTES

BARE = "bare GEMMs"
MASKED = (0.0, 0.5)
MEBIBYTE = 1 << 20


def main() -> None:
    options = parse()
    about = machine.describe()
    print(about)
    names, absent = head.available(tuple(options.hands), head.DPO)
    cases = []
    for trainable in (False, True):
        cases += (found := compare(options, names, trainable))
        print_tables(found)
    report = {
        "comparison": "LM head of a DPO step",
        "sizes": sizes(options),
        "machine": about,
        "absent": absent,
        "cases": cases,
        "quality": quality.report(torch.bfloat16) if head.TRL in names else None,
    }
    print(f"written to {results.write(options.results, 'head_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="of a response")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hands", nargs="+", default=head.ON_CPU, choices=head.ON_CPU, metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def sizes(options: argparse.Namespace) -> dict[str, int]:
    return {
        "pairs": options.pairs,
        "tokens": options.tokens,
        "features": options.features,
        "classes": options.vocabulary,
    }


def compare(options: argparse.Namespace, names: list[str], trainable: bool) -> list[dict[str, object]]:
    """Every hand that is right, with and without ignored tokens, in the same rounds; then the memory of each."""
    torch.compiler.reset()  # what was compiled for a frozen weight counts against the limit of versions
    batches = {masked: head.inputs(**sizes(options), masked=masked, trainable=trainable) for masked in MASKED}
    runs = {(BARE, masked): head.bare(batch) for masked, batch in batches.items()}
    for name in names:
        wrong = [reason for batch in batches.values() if (reason := head.disagreement(name, head.DPO, batch))]
        if wrong:
            print(f"not measured: {name} ({wrong[0]})")
            continue
        runs |= {(name, masked): head.step(name, head.DPO, batch) for masked, batch in batches.items()}
    timings = timing.interleaved(runs, options.rounds, warm_up=1)
    return [case_of(options, *key, batches[key[1]], timings) for key in timings]


def case_of(
    options: argparse.Namespace,
    name: str,
    masked: float,
    batch: head.Batch,
    timings: dict[tuple[str, float], timing.Timing],
) -> dict[str, object]:
    seconds, gemms, unmasked = timings[name, masked], timings[BARE, masked], timings[name, 0.0]
    peak = None if masked else peak_of(options, name, batch)
    return {
        "hand": name,
        "weight": "trained" if batch.trainable else "frozen",
        "masked": masked,
        "seconds": seconds.as_dict(),
        "times_gemms": seconds.median / gemms.median,
        "times_gemms_fastest": seconds.fastest / gemms.fastest,
        "times_unmasked": seconds.median / unmasked.median,
        "peak_beyond_gradients_bytes": peak,
        "allowed_bytes": WORKSPACE_BYTES + batch.hidden.numel() * batch.hidden.element_size(),
        "plan": plan_of(batch) if name == head.PREFUSE else None,
    }


def peak_of(options: argparse.Namespace, name: str, batch: head.Batch) -> int | None:
    """Peak memory beside inputs and gradients. The bare GEMMs write where there is room: what they take is oneDNN's."""
    peak = memory.peak_extra_bytes(
        "prefuse.bench.head:run",
        name=head.bare.__name__ if name == BARE else name,
        trainable=batch.trainable,
        **sizes(options),
    )
    return None if peak is None else peak - (0 if name == BARE else batch.output_bytes)


def plan_of(batch: head.Batch) -> dict[str, object]:
    plan = head.plan(batch)
    return {"name": plan.name, "gemms": plan.gemms, "tiles": plan.tiles, "tile_bytes": plan.tile_bytes}


def print_tables(cases: list[dict]) -> None:
    for masked in MASKED:
        some = [case for case in cases if case["masked"] == masked]
        allowed = some[0]["allowed_bytes"] / MEBIBYTE
        title = f"DPO, weight {some[0]['weight']}, {masked:.0%} masked; {allowed:.0f} MiB allowed beside the gradients"
        tables.show(title, ("hand", "s", "/ GEMMs", "fastest / GEMMs", "/ unmasked", "MiB"), [row(c) for c in some])


def row(case: dict) -> tuple[str, ...]:
    peak = case["peak_beyond_gradients_bytes"]
    return (
        case["hand"],
        f"{case['seconds']['median']:.3f}",
        f"{case['times_gemms']:.2f}",
        f"{case['times_gemms_fastest']:.2f}",
        f"{case['times_unmasked']:.2f}",
        "" if peak is None else f"{peak / MEBIBYTE:.0f}",
    )


if __name__ == "__main__":
    main()
