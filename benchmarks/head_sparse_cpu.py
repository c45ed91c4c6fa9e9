"""Sparse gradients of the LM head on the CPU, beside dense ones, the bare GEMMs and what else is in use.

    python benchmarks/head_sparse_cpu.py [--pairs 2] [--tokens 256] [--features 576] [--vocabulary 49152] [--rounds 5]
                                         [--data FILE] [--processor-time] [--hands NAME …] [--results DIR]

The policy's pass of a DPO step, in bfloat16 and float32, with the weight frozen and trained. The sizes are those of
SmolLM2-135M; hidden states and weight are random, with probabilities spread like that model's, or those of a model:
FILE holds (hidden [N, H], weight [V, H], labels [N]) as `torch.save` writes them, in float32. Then how far the
gradients are from those of float64 on the same inputs.
"""

import argparse
import time
from pathlib import Path

import torch

from prefuse._display import tables
from prefuse.bench import head, machine, results, timing

BARE = "bare GEMMs"
HANDS = (head.PREFUSE, *head.SPARSE, head.EAGER, head.CROSS_ENTROPY, head.TORCH_LINEAR, head.TRL, head.LIGER)


def main() -> None:
    options = parse()
    about = machine.describe()
    print(about)
    names, absent = head.available(tuple(options.hands), head.DPO)
    cases = []
    for dtype in (torch.bfloat16, torch.float32):
        for trainable in (False, True):
            cases += compare(options, names, dtype, trainable)
    report = {
        "comparison": "LM head of a DPO step, sparse gradients",
        "clock": "processor time" if options.processor_time else "wall clock",
        "data": "of a model" if options.data else "random, spread like a model's",
        "machine": about,
        "absent": absent,
        "cases": cases,
    }
    print(f"written to {results.write(options.results, 'head_sparse_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="of a response")
    parser.add_argument("--features", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, where other programs run too")
    parser.add_argument("--hands", nargs="+", default=HANDS, choices=HANDS, metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def batch_of(options: argparse.Namespace, dtype: torch.dtype, trainable: bool) -> head.Batch:
    if options.data is None:
        sizes = (options.pairs, options.tokens, options.features, options.vocabulary)
        return head.like_a_model(*sizes, dtype, trainable=trainable)
    hidden, weight, labels = torch.load(options.data)
    rows = len(hidden) // 4 * 4
    hidden = hidden[:rows].reshape(4, rows // 4, -1).to(dtype).requires_grad_()
    return head.Batch(hidden, weight.to(dtype).requires_grad_(trainable), labels[:rows].reshape(4, -1))


def compare(options: argparse.Namespace, names: list[str], dtype: torch.dtype, trainable: bool) -> list[dict]:
    """Every hand that is right, in the same rounds."""
    torch.compiler.reset()
    batch = batch_of(options, dtype, trainable)
    runs = {BARE: head.bare(batch)}
    for name in names:
        wrong = head.disagreement(name, head.DPO, batch)
        if wrong:
            print(f"not measured: {name} ({wrong})")
        else:
            runs[name] = head.step(name, head.DPO, batch)
    clock = time.process_time if options.processor_time else time.perf_counter
    timings = timing.interleaved(runs, options.rounds, warm_up=1, clock=clock)
    exact = exact_gradients(batch)
    found = []
    for name, seconds in timings.items():
        gradients = [] if name == BARE else runs[name]()
        errors = [float((g.double() - e).norm() / e.norm()) for g, e in zip(gradients, exact, strict=False)]
        found.append(
            {
                "hand": name,
                "dtype": str(dtype).removeprefix("torch."),
                "weight": "trained" if trainable else "frozen",
                "rows": batch.scored,
                "features": batch.weight.shape[1],
                "classes": batch.weight.shape[0],
                "seconds": seconds.as_dict(),
                "times_gemms": seconds.median / timings[BARE].median,
                "times_gemms_fastest": seconds.fastest / timings[BARE].fastest,
                "error_of_hidden": errors[0] if errors else None,
                "error_of_weight": errors[1] if len(errors) > 1 else None,
                "entries": entries(batch, head.SPARSE.get(name)),
            }
        )
    title = f"DPO, {dtype}, weight {found[0]['weight']}, {batch.scored} tokens"
    columns = ("hand", "s", "/ GEMMs", "fastest / GEMMs", "entries", "error, hidden", "error, weight")
    tables.show(title, columns, [row(case) for case in found])
    return found


def exact_gradients(batch: head.Batch) -> list[torch.Tensor]:
    """Those of whole logits in float64."""
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in (batch.hidden, batch.weight)]
    loss = head.through(head.log_softmax_gather, head.DPO)(*exact, batch.labels)
    return list(torch.autograd.grad(loss, [tensor for tensor in exact if tensor.requires_grad]))


def entries(batch: head.Batch, eps: float | None) -> float | None:
    """How long a list is in the mean."""
    if eps is None:
        return None
    with torch.no_grad():
        lengths = []
        for some in batch.hidden.flatten(0, 1).split(64):
            p = (some.float() @ batch.weight.float().t()).softmax(-1)
            lengths.append((p / eps).clamp(max=1).sum(-1))
    return float(torch.cat(lengths).mean())


def row(case: dict) -> tuple[str, ...]:
    numbers = (case["entries"], case["error_of_hidden"], case["error_of_weight"])
    return (
        case["hand"],
        f"{case['seconds']['median']:.3f}",
        f"{case['times_gemms']:.2f}",
        f"{case['times_gemms_fastest']:.2f}",
        *("" if number is None else f"{number:.2g}" if number < 1 else f"{number:.0f}" for number in numbers),
    )


if __name__ == "__main__":
    main()
