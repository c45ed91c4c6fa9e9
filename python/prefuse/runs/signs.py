"""What the literature says to look out for, looked for in a run.

A sign compares the means of the first and of the last third of what was logged. A change counts where it is above four
standard errors of both, so that noise is no sign, and above a size that each sign names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefuse.runs.run import EVALUATION, Run

LEAST = 10
"""Values that a series must have before a change in it is looked for."""

CHOSEN_FELL = 1.0
"""Nats by which the likelihood of chosen responses falls before it is a sign."""

LENGTH_GREW = 1.2
"""How often as long completions are."""

MARGIN_SATURATES = 4.0
"""The mean reward margin from which σ(−margin), the weight of DPO's gradient, is below 0.018."""

KL_LARGE = 10.0
"""Nats from the reference per response."""

ENTROPY_FELL = 0.3
"""The share of the first entropy that is left."""

TRUNCATED = 0.2
"""The share of completions that were cut at the most tokens."""

EQUAL_REWARDS = 0.5
"""The share of groups whose rewards are all the same."""

EVALUATION_ROSE = 1.05
"""The last evaluation's loss over the best one."""

START_MARGIN = 0.05
"""The reward margin at the first step from which policy and reference are not the same."""


class Sign(NamedTuple):
    """Something to know about a run.

    Attributes:
        name: of the sign, as the documentation lists them.
        warning: whether something may be wrong; otherwise it only explains what looks wrong.
        what: what was seen, with numbers.
        advice: what it means and what to do.
        source: where that is from; empty for what follows from the formulas.
    """

    name: str
    warning: bool
    what: str
    advice: str
    source: str = ""


def signs(run: Run) -> list[Sign]:
    """What there is to know about a run, warnings first. Empty where nothing stands out, or too little was logged."""
    found = [sign for look in _LOOKS for sign in [look(run)] if sign is not None]
    return sorted(found, key=lambda sign: not sign.warning)


class _Change(NamedTuple):
    first: float
    last: float
    noise: float

    @property
    def rises(self) -> bool:
        return self.last - self.first > self.noise

    @property
    def falls(self) -> bool:
        return self.first - self.last > self.noise


def _values(run: Run, name: str) -> NDArray[np.float64]:
    """The finite values of a series; empty where there is none."""
    values = run.series[name].values if name in run.series else np.empty(0)
    return values[np.isfinite(values)]


def _change(run: Run, name: str) -> _Change | None:
    """None of a series that is too short."""
    values = _values(run, name)
    if values.size < LEAST:
        return None
    part = values.size // 3
    first, last = values[:part], values[-part:]
    noise = 4.0 * math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / part)
    return _Change(float(first.mean()), float(last.mean()), noise)


def _first(run: Run, name: str) -> float | None:
    """The value of the first step; None where that was not logged."""
    found = run.series.get(name)
    return float(found.values[0]) if found is not None and found.steps[0] <= 1 else None


def _not_finite(run: Run) -> Sign | None:
    for name in ("loss", "grad_norm"):
        found = run.series.get(name)
        if found is not None and (bad := ~np.isfinite(found.values)).any():
            at = int(found.steps[bad][0])
            return Sign(
                "not_finite",
                True,
                f"{name} is {found.values[bad][0]:g} at step {at}, and {int(bad.sum())} times in all",
                "a row without a response token in a mean, float16 without a scaler, or too high a learning rate; "
                "parameters may hold NaN from that step on",
            )
    return None


def _no_gradient(run: Run) -> Sign | None:
    norms = _values(run, "grad_norm")
    if norms.size < 2 or norms.any():
        return None
    return Sign(
        "no_gradient",
        True,
        f"grad_norm is 0 at all {norms.size} logged steps",
        "nothing that is trained is reached: all parameters frozen, inputs without gradients under gradient "
        "checkpointing, or rewards that are equal in every group",
    )


def _accuracy_at_start(run: Run) -> Sign | None:
    accuracy, margin = _first(run, "rewards/accuracies"), _first(run, "rewards/margins")
    if accuracy is None or margin is None or accuracy > 0.05 or abs(margin) > 1e-6:
        return None
    return Sign(
        "accuracy_at_start",
        False,
        f"rewards/accuracies is {accuracy:g} at the first step",
        "policy and reference are the same then, all margins are exactly 0, and a margin of 0 does not count as right",
    )


def _margin_at_start(run: Run) -> Sign | None:
    margin = _first(run, "rewards/margins")
    if margin is None or not abs(margin) > START_MARGIN:
        return None
    return Sign(
        "margin_at_start",
        False,
        f"rewards/margins is {margin:.3g} at the first step, where policy and reference should agree",
        "dropout in the policy, a reference computed in 16 bits with other padding or batch sizes, a reference of "
        "another model, or an objective without reference, whose margins are no log-ratios",
    )


def _chosen_falls(run: Run) -> Sign | None:
    change = _change(run, "logps/chosen")
    if change is None or not change.falls or change.first - change.last < CHOSEN_FELL:
        return None
    return Sign(
        "chosen_falls",
        True,
        f"logps/chosen fell from {change.first:.4g} to {change.last:.4g} nats",
        "chosen responses become less likely, so probability goes to responses that nobody chose; a term of the "
        "chosen likelihood (dpop, rpo's SFT term, cpo), a smaller learning rate, or pairs that differ more",
        "arXiv:2402.13228, arXiv:2410.08847",
    )


def _length_grows(run: Run) -> Sign | None:
    name = "completions/mean_length"
    change = _change(run, name)
    if change is None or not change.rises or change.last < LENGTH_GREW * change.first:
        return None
    return Sign(
        "length_grows",
        True,
        f"{name} grew from {change.first:.4g} to {change.last:.4g} tokens",
        "longer answers may be what is rewarded; compare win rates at equal length, average log-probabilities (simpo), "
        "price length (r_dpo, ld_dpo), or leave out GRPO's division by length (dr_grpo)",
        "arXiv:2403.19159, arXiv:2503.20783",
    )


def _saturated(run: Run) -> Sign | None:
    change = _change(run, "rewards/margins")
    if change is None or change.last < MARGIN_SATURATES:
        return None
    weight = 1.0 / (1.0 + math.exp(min(change.last, 700.0)))
    return Sign(
        "saturated",
        True,
        f"rewards/margins is {change.last:.3g}, so that σ(−margin), the weight of a pair's gradient, is {weight:.2g}",
        "a logistic loss learns nothing more from such pairs but pushes the margin on; a finite target (ipo), label "
        "smoothing (cdpo), fewer epochs",
        "arXiv:2310.12036",
    )


def _overfits(run: Run) -> Sign | None:
    losses, trained = _values(run, f"{EVALUATION}loss"), _change(run, "loss")
    if losses.size < 3 or trained is None or not trained.falls or losses.min() <= 0.0:
        return None
    if losses[-1] < EVALUATION_ROSE * losses.min():
        return None
    best = run.series[f"{EVALUATION}loss"]
    at = int(best.steps[int(np.nanargmin(best.values))])
    return Sign(
        "overfits",
        True,
        f"the loss of evaluations rose from {losses.min():.4g} (step {at}) to {losses[-1]:.4g}, that of training fell",
        "take the checkpoint of that step; fewer epochs, or a smaller learning rate",
    )


def _kl_large(run: Run) -> Sign | None:
    for name in ("kl", "objective/kl"):
        change = _change(run, name)
        if change is not None and change.last > KL_LARGE and change.rises:
            return Sign(
                "kl_large",
                True,
                f"{name} grew from {change.first:.3g} to {change.last:.3g} nats",
                "the farther from the reference, the less a reward model's gain is a real one; look at samples, raise "
                "beta, or stop earlier",
                "arXiv:2210.10760",
            )
    return None


def _entropy_falls(run: Run) -> Sign | None:
    change = _change(run, "entropy")
    if change is None or not change.falls or change.last > ENTROPY_FELL * change.first:
        return None
    return Sign(
        "entropy_falls",
        True,
        f"entropy fell from {change.first:.3g} to {change.last:.3g} nats per token",
        "a policy that no longer explores stops improving; a higher upper clip (dapo), a bonus on entropy, a KL term",
        "arXiv:2505.22617, arXiv:2503.14476",
    )


def _equal_rewards(run: Run) -> Sign | None:
    change = _change(run, "frac_reward_zero_std")
    if change is None or change.last < EQUAL_REWARDS:
        return None
    return Sign(
        "equal_rewards",
        True,
        f"in {change.last:.0%} of the groups all rewards are the same",
        "such groups have no advantage and no gradient; leave them out and sample more, or take other prompts",
        "arXiv:2503.14476",
    )


def _truncated(run: Run) -> Sign | None:
    change = _change(run, "completions/clipped_ratio")
    if change is None or change.last < TRUNCATED:
        return None
    return Sign(
        "truncated",
        True,
        f"{change.last:.0%} of completions are cut at the most tokens",
        "their rewards are of unfinished answers; allow more tokens, or leave them out of the loss "
        "(mask_truncated_completions)",
        "arXiv:2503.14476",
    )


_LOOKS: tuple[Callable[[Run], Sign | None], ...] = (
    _not_finite,
    _no_gradient,
    _chosen_falls,
    _length_grows,
    _saturated,
    _overfits,
    _kl_large,
    _entropy_falls,
    _equal_rewards,
    _truncated,
    _accuracy_at_start,
    _margin_at_start,
)
