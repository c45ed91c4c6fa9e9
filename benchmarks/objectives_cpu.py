"""Value and gradient of objectives on the CPU: prefuse beside the same formula in PyTorch with autograd.

    python benchmarks/objectives_cpu.py [--pairs 64] [--rounds 31] [--results DIR]

Everything starts from log-probabilities per response, which require grad, and ends with the gradient of the mean loss
to the policy's. "with metrics" adds what trainers log (rewards, margins, accuracies, log-probabilities) as numbers.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefuse.bench import machine, results, timing
from prefuse.language import Objective
from prefuse.objectives import get

Columns = Mapping[str, Tensor]
Formula = Callable[[Columns], tuple[Tensor, Tensor, Tensor]]
POLICY = ("chosen_logps", "rejected_logps")
EAGER = "eager"
WITH_METRICS = ", with metrics"


def main() -> None:
    options = parse()
    report: dict[str, object] = {
        "comparison": "value and gradient of objectives",
        "pairs": options.pairs,
        "machine": machine.describe(),
        "cases": [case for name in FORMULAS for case in compare(name, options.pairs, options.rounds)],
    }
    print_table(report)
    print(f"written to {results.write(options.results, 'objectives_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def compare(name: str, pairs: int, rounds: int) -> list[dict[str, object]]:
    """All ways to one objective's gradient, in the same rounds, after checking that they agree."""
    columns = sample(name, pairs)
    check(name, columns)
    timings = timing.interleaved(ways(name, columns), rounds)
    return [
        {
            "objective": name,
            "way": way,
            "seconds": seconds.as_dict(),
            "eager_over_this": timings[EAGER + (WITH_METRICS if WITH_METRICS in way else "")].median / seconds.median,
        }
        for way, seconds in timings.items()
    ]


def objective_of(name: str) -> Objective:
    """The objective as TRL computes it: its IPO averages."""
    return get(name)(variant="trl-1.16") if name == "ipo" else get(name)


def sample(name: str, pairs: int) -> dict[str, Tensor]:
    """Columns as a batch of responses of some 50 tokens has them."""
    generator = torch.Generator().manual_seed(0)
    available = {
        column: torch.empty(pairs).normal_(-60.0, 15.0, generator=generator)
        for column in (*POLICY, "ref_chosen_logps", "ref_rejected_logps")
    }
    for column in ("chosen_lengths", "rejected_lengths"):
        available[column] = torch.randint(20, 80, (pairs,), generator=generator)
    columns = {column: available[column] for column in objective_of(name).columns}
    return {column: value.requires_grad_(column in POLICY) for column, value in columns.items()}


def ways(name: str, columns: Columns) -> dict[str, Callable[[], object]]:
    """The cases by name; the gradient is made and dropped."""
    objective, formula = objective_of(name), FORMULAS[name]
    compiled = torch.compile(formula)
    leaves = [columns[column] for column in POLICY]
    arrays = {column: value.detach().numpy() for column, value in columns.items()}

    def fused() -> None:
        torch.autograd.grad(objective(**columns).loss, leaves)

    def fused_with_metrics() -> None:
        score = objective(**columns)
        torch.autograd.grad(score.loss, leaves)
        dict(score.metrics)

    def in_torch(function: Formula, metrics: bool) -> None:
        loss, chosen, rejected = function(columns)
        torch.autograd.grad(loss, leaves)
        if metrics:
            log(columns, chosen, rejected)

    return {
        "prefuse, autograd": fused,
        "prefuse, value_and_grad": lambda: objective.value_and_grad(**columns).gradients,
        "prefuse, NumPy": lambda: objective.value_and_grad(**arrays).gradients,
        EAGER: lambda: in_torch(formula, metrics=False),
        "torch.compile": lambda: in_torch(compiled, metrics=False),
        "prefuse, autograd" + WITH_METRICS: fused_with_metrics,
        EAGER + WITH_METRICS: lambda: in_torch(formula, metrics=True),
        "torch.compile" + WITH_METRICS: lambda: in_torch(compiled, metrics=True),
    }


def check(name: str, columns: Columns) -> None:
    """Nothing is compared that does not compute the same."""
    leaves = [columns[column] for column in POLICY]
    ours, theirs = objective_of(name)(**columns).loss, FORMULAS[name](columns)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), rtol=1e-3, atol=1e-6
    )


def log(columns: Columns, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """What TRL's trainers log, as they make it."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": (chosen > rejected).float().mean().item(),
        "logps/chosen": columns["chosen_logps"].detach().mean().item(),
        "logps/rejected": columns["rejected_logps"].detach().mean().item(),
    }


def log_ratios(columns: Columns) -> tuple[Tensor, Tensor]:
    chosen = columns["chosen_logps"] - columns["ref_chosen_logps"]
    return chosen, columns["rejected_logps"] - columns["ref_rejected_logps"]


def averages(columns: Columns) -> tuple[Tensor, Tensor]:
    chosen = columns["chosen_logps"] / columns["chosen_lengths"]
    return chosen, columns["rejected_logps"] / columns["rejected_lengths"]


def dpo(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = log_ratios(columns)
    return -logsigmoid(0.1 * (chosen - rejected)).mean(), 0.1 * chosen, 0.1 * rejected


def simpo(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = averages(columns)
    return -logsigmoid(2.0 * (chosen - rejected) - 1.0).mean(), 2.0 * chosen, 2.0 * rejected


def ipo(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = log_ratios(columns)
    margin = chosen / columns["chosen_lengths"] - rejected / columns["rejected_lengths"]
    return (margin - 5.0).square().mean(), 0.1 * chosen, 0.1 * rejected


def orpo(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = averages(columns)
    odds = (chosen - torch.log1p(-chosen.exp())) - (rejected - torch.log1p(-rejected.exp()))
    likelihood = -columns["chosen_logps"].sum() / columns["chosen_lengths"].sum()
    return likelihood - 0.1 * logsigmoid(odds).mean(), 0.1 * chosen, 0.1 * rejected


def aot(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = log_ratios(columns)
    policy = (columns["chosen_logps"] - columns["rejected_logps"]).sort().values
    reference = (columns["ref_chosen_logps"] - columns["ref_rejected_logps"]).sort().values
    return -logsigmoid(0.1 * (policy - reference)).mean(), 0.1 * chosen, 0.1 * rejected


FORMULAS: dict[str, Formula] = {"dpo": dpo, "simpo": simpo, "ipo": ipo, "orpo": orpo, "aot": aot}


def print_table(report: dict[str, object]) -> None:
    cases = report["cases"]
    assert isinstance(cases, list)
    table = Table(title=f"value and gradient, {report['pairs']} pairs: µs (times faster than eager PyTorch)")
    table.add_column("")
    for name in FORMULAS:
        table.add_column(name, justify="right")
    for way in dict.fromkeys(case["way"] for case in cases):
        own = [case for case in cases if case["way"] == way]
        table.add_row(way, *(f"{case['seconds']['median'] * 1e6:.1f} ({case['eager_over_this']:.1f})" for case in own))
    console = Console()
    console.print(report["machine"])
    console.print(table)


if __name__ == "__main__":
    main()
