"""Each sign on a run that has it, and none on runs that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from prefuse import runs
from prefuse.runs.run import run_of

STEPS = 40
RISING = np.linspace(0.0, 1.0, STEPS)


def noise(seed: int, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=STEPS)


def healthy() -> dict[str, np.ndarray]:
    """A training in which all goes as it should, with the noise that such have."""
    return {
        "loss": 0.69 - 0.3 * RISING + noise(0, 0.05),
        "grad_norm": 3.0 + noise(1, 0.5),
        "rewards/margins": 1.5 * RISING + noise(2, 0.2),
        "rewards/accuracies": 0.5 + 0.3 * RISING,
        "logps/chosen": -120.0 + noise(3, 15.0),
        "logps/rejected": -110.0 - 20.0 * RISING + noise(4, 15.0),
        "kl": 0.05 * RISING + noise(5, 0.005),
        "entropy": 1.4 - 0.2 * RISING + noise(6, 0.1),
        "completions/mean_length": 100.0 + 5.0 * RISING + noise(7, 8.0),
        "completions/clipped_ratio": np.full(STEPS, 0.02),
        "frac_reward_zero_std": np.full(STEPS, 0.2),
        "eval/loss": 0.69 - 0.25 * RISING,
    }


def run(series: Mapping[str, Sequence[float] | np.ndarray], first: int = 1) -> runs.Run:
    return run_of(
        "run", ({"step": first + at, name: value} for name, values in series.items() for at, value in enumerate(values))
    )


PLANTED: dict[str, dict[str, np.ndarray]] = {
    "not_finite": {"loss": np.where(np.arange(STEPS) == 7, np.nan, 0.5)},
    "no_gradient": {"grad_norm": np.zeros(STEPS)},
    "chosen_falls": {"logps/chosen": -120.0 - 60.0 * RISING + noise(8, 15.0)},
    "length_grows": {"completions/mean_length": 100.0 + 80.0 * RISING + noise(9, 8.0)},
    "saturated": {"rewards/margins": 12.0 * RISING},
    "overfits": {"eval/loss": 0.6 + (RISING - 0.5) ** 2},
    "kl_large": {"kl": 40.0 * RISING},
    "entropy_falls": {"entropy": 1.4 * np.exp(-5.0 * RISING)},
    "equal_rewards": {"frac_reward_zero_std": np.full(STEPS, 0.8)},
    "truncated": {"completions/clipped_ratio": np.full(STEPS, 0.4)},
}


def test_nothing_is_wrong_with_a_healthy_run() -> None:
    assert runs.signs(run(healthy(), first=5)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_the_only_sign(name: str) -> None:
    found = runs.signs(run({**healthy(), **PLANTED[name]}, first=5))
    assert [sign.name for sign in found] == [name]
    assert found[0].warning and found[0].what and found[0].advice


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_sign(seed: int) -> None:
    means = {name: values.mean() for name, values in healthy().items()}
    series = {name: mean + noise(100 * seed + at, 0.1 * abs(mean)) for at, (name, mean) in enumerate(means.items())}
    assert runs.signs(run({**series, "eval/loss": np.full(STEPS, 0.5)}, first=5)) == []


def test_an_accuracy_of_0_at_the_first_step_is_explained() -> None:
    series = {**healthy(), "rewards/margins": 1.5 * RISING, "rewards/accuracies": np.r_[0.0, np.full(STEPS - 1, 0.7)]}
    (sign,) = runs.signs(run(series))
    assert sign.name == "accuracy_at_start" and not sign.warning


def test_a_margin_at_the_first_step_is_explained_where_that_was_logged() -> None:
    series = {**healthy(), "rewards/margins": 0.5 + RISING}
    (sign,) = runs.signs(run(series))
    assert sign.name == "margin_at_start" and "0.5" in sign.what
    assert runs.signs(run(series, first=10)) == []  # logged from the tenth step on: the policy has moved


def test_few_values_say_nothing() -> None:
    assert runs.signs(run({name: values[:4] for name, values in PLANTED["chosen_falls"].items()}, first=5)) == []


def test_warnings_come_first() -> None:
    series = {**healthy(), "rewards/margins": 0.5 + RISING, **PLANTED["truncated"]}
    assert [sign.name for sign in runs.signs(run(series))] == ["truncated", "margin_at_start"]


def test_the_step_that_is_told_is_the_right_one() -> None:
    (sign,) = runs.signs(run({**healthy(), **PLANTED["not_finite"]}, first=5))
    assert "loss is nan at step 12, and 1 times in all" in sign.what
