"""What happens to rewards before an objective sees them: normalising, combining, spreading over tokens. Plain PyTorch.

Everything here is detached from the policy: rewards and values are data.
"""

from __future__ import annotations

import math

import torch

__all__ = [
    "RunningMoments",
    "ensemble_reward",
    "generalized_advantages",
    "overlong_penalty",
    "token_rewards",
    "whiten",
]


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, discount: float = 1.0, smoothing: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return GAE and its returns, both [R, T] (Schulman et al. 2015, arXiv:1506.02438, eq. 16).

    ``A_t = Σ_{i≥t} (γλ)^{i-t} δ_i``, ``δ_t = r_t + γ V_{t+1} - V_t``; the value after a response's last token is 0.
    Returns are ``A + V``. Both are 0 where the mask is.

    Args:
        rewards: reward of each token, [R, T].
        values: V of the state before each token, [R, T].
        mask: true where a token counts, [R, T]; tokens left out are skipped over.
        discount: γ in [0, 1].
        smoothing: λ in [0, 1]; 1 gives Monte-Carlo returns, 0 one-step residuals.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(rewards, values=values, mask=mask)
    kept = mask.bool()
    reward, value = torch.where(kept, rewards, 0.0).detach(), torch.where(kept, values, 0.0).detach()
    advantages = torch.zeros_like(value)
    running, following = torch.zeros_like(value[:, 0]), torch.zeros_like(value[:, 0])
    for t in range(value.shape[1] - 1, -1, -1):
        residual = reward[:, t] + discount * following - value[:, t]
        running = torch.where(kept[:, t], residual + discount * smoothing * running, running)
        following = torch.where(kept[:, t], value[:, t], following)
        advantages[:, t] = torch.where(kept[:, t], running, 0.0)
    return advantages, advantages + value


def token_rewards(
    scores: torch.Tensor,
    logps: torch.Tensor,
    ref_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    kl_weight: float = 0.05,
) -> torch.Tensor:
    """Return PPO's rewards [R, T]: ``-κ (log π - log π_ref)`` at every token, plus the response's score at its last.

    Args:
        scores: one score per response, [R].
        logps, ref_logps: log-probabilities of the tokens under the sampling policy and the reference, [R, T], in nats.
        mask: true where a token counts, [R, T].
        kl_weight: κ, 0.01-0.2.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(logps, ref_logps=ref_logps, mask=mask)
    if scores.shape != logps.shape[:1]:
        raise ValueError(f"scores: expected shape {tuple(logps.shape[:1])}, got {tuple(scores.shape)}")
    kept = mask.bool()
    after = kept.flip(1).cumsum(1).flip(1)
    penalty = torch.where(kept, -kl_weight * (logps - ref_logps), 0.0)
    return (penalty + torch.where(kept & (after == 1), scores[:, None], 0.0)).detach()


def whiten(x: torch.Tensor, mask: torch.Tensor, *, unbiased: bool = False, epsilon: float = 1e-8) -> torch.Tensor:
    """Return x with mean 0 and variance 1 over the elements the mask keeps, 0 elsewhere.

    Args:
        x, mask: of one shape.
        unbiased: divide the variance by n - 1 (Tülu 2.5, TRL) rather than n (MOSS).
        epsilon: added to the variance; 1e-6 in MOSS.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(x, mask=mask)
    kept = mask.bool()
    values = x.detach()[kept]
    variance = values.var(correction=int(unbiased and values.numel() > 1))
    return torch.where(kept, (x.detach() - values.mean()) / torch.sqrt(variance + epsilon), 0.0)


class RunningMoments:
    """Mean and standard deviation of every reward seen so far, and rewards scaled by them (PPO-max, arXiv:2307.04964).

    Attributes:
        count: how many rewards were seen.
        mean: their mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of n - 1 degrees of freedom; 1 while fewer than two rewards were seen."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else 1.0

    def update(self, rewards: torch.Tensor) -> None:
        """Take a batch of rewards in; batches may differ in size."""
        batch = rewards.detach().double().flatten()
        if batch.numel() == 0:
            return
        gap, total = float(batch.mean()) - self.mean, self.count + batch.numel()
        self._squares += float((batch - batch.mean()).square().sum()) + gap**2 * self.count * batch.numel() / total
        self.mean += gap * batch.numel() / total
        self.count = total

    def scaled(self, rewards: torch.Tensor, *, center: bool = False, clip: float | None = None) -> torch.Tensor:
        """Return rewards divided by the standard deviation.

        Args:
            rewards: of any shape.
            center: subtract the mean first.
            clip: then limit to ± this.
        """
        shifted = rewards - self.mean if center else rewards
        scaled = shifted / max(self.std, 1e-12)
        return scaled if clip is None else scaled.clamp(-clip, clip)


def ensemble_reward(
    rewards: torch.Tensor, *, combine: str = "mean", weight: float = 0.5, unbiased: bool = False
) -> torch.Tensor:
    """Combine the scores of several reward models (Coste et al. 2023, arXiv:2310.02743); [...] from [..., k].

    Args:
        rewards: one score per answer and model.
        combine: ``"mean"``; ``"worst"`` the smallest (WCO); ``"uncertainty"`` mean minus weight times the variance over
            the models (UWO).
        weight: λ of ``"uncertainty"``: 0.5 for best-of-n, 0.1 for PPO in the paper's code.
        unbiased: divide the variance by k - 1, as that code does for PPO, rather than k, as it does for best-of-n.

    Raises:
        ValueError: `combine` is none of these.
    """
    if combine == "mean":
        return rewards.mean(-1)
    if combine == "worst":
        return rewards.amin(-1)
    if combine != "uncertainty":
        raise ValueError(f'combine: expected "mean", "worst" or "uncertainty", got {combine!r}')
    return rewards.mean(-1) - weight * rewards.var(-1, correction=int(unbiased and rewards.shape[-1] > 1))


def overlong_penalty(lengths: torch.Tensor, *, max_length: int, buffer: int) -> torch.Tensor:
    """DAPO's soft penalty on length (Yu et al. 2025, arXiv:2503.14476, eq. 13), to be added to the reward.

    0 up to ``max_length - buffer`` tokens, then falling in a line to -1 at ``max_length``, and -1 beyond.

    Args:
        lengths: tokens of each response, [R].
        max_length: the longest a response may be, in tokens.
        buffer: over how many tokens the penalty grows.
    """
    return -((lengths - (max_length - buffer)) / buffer).clamp(0.0, 1.0)


def _same_shape(x: torch.Tensor, **others: torch.Tensor) -> None:
    for name, other in others.items():
        if other.shape != x.shape:
            raise ValueError(f"{name}: expected shape {tuple(x.shape)}, got {tuple(other.shape)}")
