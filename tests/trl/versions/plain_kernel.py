"""The kernel of TRL's fused head in plain PyTorch: that of TRL 1.15 runs on GPUs alone, and so do its trainers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from prefuse.trl import compatibility


class PlainKernel:
    """All logits, float32, and autograd."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = (),
    ) -> tuple[Tensor | None, ...]:
        logits = torch.nn.functional.linear(hidden, weight, bias).float() * logit_scale
        if final_logit_softcapping is not None:
            logits = torch.tanh(logits / final_logit_softcapping) * final_logit_softcapping
        logps = (logits / temperature).log_softmax(-1)
        made = {
            "entropy": -(logps.exp() * logps).sum(-1),
            "log_sum_sq_probs": (2 * logps.detach()).logsumexp(-1),
            "mean_logits": logits.detach().mean(-1) / temperature,
            "is_top1": logits.argmax(-1) == targets,
        }
        others = (value if name in outputs else None for name, value in made.items())
        return logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1), *others


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """TRL's trainers run on the CPU inside, where they could not."""
    utilities, kernels = map(compatibility.module, (compatibility.UTILITIES, compatibility.KERNELS[-1]))
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(utilities, "add_fused_lm_head") and not hasattr(kernels, "_use_triton"):
            patch.setattr(utilities, "_ChunkedLogProbFunction", PlainKernel)
        yield
