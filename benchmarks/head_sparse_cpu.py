"""Sparse gradients of the LM head on the CPU, beside dense ones, the bare GEMMs and what else is in use.

    python benchmarks/head_sparse_cpu.py [--pairs 2] [--tokens 256] [--features 576] [--vocabulary 49152] [--rounds 5]
                                         [--data smollm2|FILE] [--processor-time] [--dtypes NAME …] [--hands NAME …]
                                         [--results DIR]

The policy's pass of a DPO step, in bfloat16 and float32, with the weight frozen and trained. The sizes are those of
SmolLM2-135M; hidden states and weight are random, with probabilities spread like that model's, or those of a model:
`smollm2` takes that model, on prose of Python's own help, and a FILE holds (hidden [N, H], weight [V, H], labels [N])
as `torch.save` writes them, in float32. Then how far the
gradients are from those of float64 on the same inputs. "dropped" and "blocks" are what prefuse does not do: what is
below the threshold left out, by lists or by blocks of 128 tokens and 128 classes that have nothing above it.

Then log-probabilities alone, in bfloat16, over the one GEMM: with logits in bfloat16 and in float32.
"""

import argparse
import time
from functools import cache
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

import prefuse
from prefuse._backends import lists
from prefuse._backends.rows import Rows, bits_of
from prefuse._display import tables
from prefuse.bench import head, machine, results, timing
from prefuse.demo.pretrained import source

BARE = "bare GEMMs"
DROPPED, BLOCKS = "dropped below 2**-12", "blocks above 2**-12"
THRESHOLD, SIDE = 2.0**-12, 128
EXACT = "prefuse, sparse=2**-12, logits in float32"
PEERS = (head.EAGER, head.CROSS_ENTROPY, head.TORCH_LINEAR, head.TRL, head.LIGER, head.CCE)
HANDS = (head.PREFUSE, *head.SPARSE, EXACT, DROPPED, BLOCKS, *PEERS)


class Dropped(torch.autograd.Function):
    """Log-probabilities whose gradient knows the classes above the threshold alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = hidden @ weight.t()
        rows = Rows(logits, labels, None, None, None, 1.0, 1.0, 0.0, head.IGNORED, bits_of(("logp", "lse")), 10)
        table = logits.new_empty((2, len(labels)), dtype=torch.float32)
        made = lists.make(rows, table, True, torch.arange(len(labels)), lists.Sampling(THRESHOLD, 0, 0))
        above = made.values > THRESHOLD  # those at it were rounded up
        offsets = torch.nn.functional.pad(above.cumsum(0), (1, 0))[
            torch.nn.functional.pad(made.lengths.cumsum(0), (1, 0))
        ]
        ctx.save_for_backward(
            hidden, weight, labels, offsets, made.classes[above], made.values[above], made.at_label[0]
        )
        return table[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, *listed, own = ctx.saved_tensors
        matrix = lists.Matrix(*listed, -grad, grad * own, labels, len(weight))
        of_hidden, of_weight = torch.empty_like(hidden), None
        matrix.by_row(weight, of_hidden)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            matrix.by_class(hidden, of_weight, None)
        return of_hidden, of_weight, None


class Blocks(torch.autograd.Function):
    """Log-probabilities whose gradient knows the blocks alone in which something is above the threshold."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = hidden @ weight.t()
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            logps = prefuse.token_logps(leaf * 1, labels, inplace=True)
            (own,) = torch.autograd.grad(logps.sum(), leaf)
        ctx.save_for_backward(hidden, weight, own)
        return logps.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, own = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(own), SIDE):
            rows = slice(start, start + SIDE)
            tile = torch.nn.functional.pad(own[rows], (0, -own.shape[1] % SIDE))
            kept = (tile.abs().amax(0).view(-1, SIDE).amax(1) >= THRESHOLD).nonzero()
            columns = (kept * SIDE + torch.arange(SIDE)).flatten()
            columns = columns[columns < len(weight)]
            few = tile[:, columns]
            of_hidden[rows] = (few @ weight[columns]) * grad[rows, None]
            if of_weight is not None:
                scaled = (hidden[rows] * grad[rows, None]).to(few.dtype)
                of_weight.index_add_(0, columns, (few.t() @ scaled).float())
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None


def exact_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of logits in float32 with sparse gradients; of bfloat16 the logits are never written."""
    return prefuse.linear_token_logps(
        hidden, weight, labels, sparse=prefuse.Sparse(THRESHOLD, seed=0), logits_dtype=torch.float32
    )


head.HANDS[EXACT] = lambda task: head.through(exact_logps, task)
head.HANDS[DROPPED] = lambda task: head.through(Dropped.apply, task)
head.HANDS[BLOCKS] = lambda task: head.through(Blocks.apply, task)


def main() -> None:
    options = parse()
    about = machine.describe()
    print(about)
    names, absent = head.available(tuple(options.hands), head.DPO)
    cases = []
    for dtype in (getattr(torch, name) for name in options.dtypes):
        for trainable in (False, True):
            cases += compare(options, names, dtype, trainable)
    cases += forward_only(options)
    report = {
        "comparison": "LM head of a DPO step, sparse gradients",
        "clock": "processor time" if options.processor_time else "wall clock",
        "data": "random, spread like a model's" if options.data is None else f"of {Path(options.data).stem}",
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
    parser.add_argument("--data", help='"smollm2", or a file')
    parser.add_argument("--processor-time", action="store_true", help="of one thread, where other programs run too")
    parser.add_argument("--dtypes", nargs="+", default=("bfloat16", "float32"), choices=("bfloat16", "float32"))
    parser.add_argument("--hands", nargs="+", default=HANDS, choices=HANDS, metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def batch_of(options: argparse.Namespace, dtype: torch.dtype, trainable: bool) -> head.Batch:
    if options.data is None:
        sizes = (options.pairs, options.tokens, options.features, options.vocabulary)
        return head.like_a_model(*sizes, dtype, trainable=trainable)
    hidden, weight, labels = (
        of_smollm2(2 * options.pairs, options.tokens) if options.data == "smollm2" else torch.load(options.data)
    )
    rows = len(hidden) // 4 * 4
    hidden = hidden[:rows].detach().reshape(4, rows // 4, -1).to(dtype).requires_grad_()
    return head.Batch(hidden, weight.detach().to(dtype).requires_grad_(trainable), labels[:rows].reshape(4, -1))


@cache
def of_smollm2(texts: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """The model's last hidden states in sections of Python's help, its head, and the tokens that come next."""
    model, tokenizer = source.load("smollm2")
    sections = (tokenizer(text)["input_ids"][: tokens + 1] for text in topics.values())
    ids = torch.tensor(list(islice((section for section in sections if len(section) > tokens), texts)))
    with torch.no_grad():
        hidden = model.model(ids[:, :-1])[0]
    return hidden.flatten(0, 1), model.lm_head.weight.detach(), ids[:, 1:].flatten()


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
                "entries": entries(batch, THRESHOLD if name == EXACT else head.SPARSE.get(name)),
            }
        )
    title = f"DPO, {dtype}, weight {found[0]['weight']}, {batch.scored} tokens"
    columns = ("hand", "s", "/ GEMMs", "fastest / GEMMs", "entries", "error, hidden", "error, weight")
    tables.show(title, columns, [row(case) for case in found], text=("hand",))
    return found


def forward_only(options: argparse.Namespace) -> list[dict]:
    """Log-probabilities alone: their time over the one GEMM, and the error of a response's in nats."""
    batch = batch_of(options, torch.bfloat16, False)
    hidden, weight, labels = (tensor.detach() for tensor in batch)
    rows, logits = hidden.flatten(0, 1), hidden.new_empty((labels.numel(), len(weight)))
    kinds = {"logits in bfloat16": None, "logits in float32": torch.float32}
    runs: dict[str, Any] = {BARE: lambda: torch.mm(rows, weight.t(), out=logits)}
    for name, dtype in kinds.items():
        runs[name] = lambda dtype=dtype: prefuse.linear_token_logps(hidden, weight, labels, logits_dtype=dtype)
    clock = time.process_time if options.processor_time else time.perf_counter
    with torch.no_grad():
        timings = timing.interleaved(runs, options.rounds, warm_up=1, clock=clock)
        exact = torch.cat(
            [head.log_softmax_gather(h.double(), weight.double(), y) for h, y in zip(hidden, labels, strict=True)]
        )
        exact = exact.view(labels.shape).sum(-1)
        found = []
        for name, seconds in timings.items():
            off = None if name == BARE else float((runs[name]().double().sum(-1) - exact).square().mean().sqrt())
            found.append(
                {
                    "hand": name,
                    "pass": "forward",
                    "dtype": "bfloat16",
                    "rows": len(rows),
                    "seconds": seconds.as_dict(),
                    "times_gemms": seconds.median / timings[BARE].median,
                    "times_gemms_fastest": seconds.fastest / timings[BARE].fastest,
                    "error_of_response": off,
                }
            )
    cells = [
        (
            case["hand"],
            f"{case['times_gemms']:.2f}",
            f"{case['times_gemms_fastest']:.2f}",
            _short(case["error_of_response"]),
        )
        for case in found
    ]
    title = f"log-probabilities alone, bfloat16, responses of {labels.shape[1]} tokens"
    tables.show(title, ("", "/ GEMM", "fastest / GEMM", "error of a response, nats rms"), cells)
    return found


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}"


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
