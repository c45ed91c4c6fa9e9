"""The callbacks inside a real `transformers.Trainer`."""

import types

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainerCallback, TrainingArguments

from prefuse.outer import frozen_copy
from prefuse.outer.callbacks import Acceleration, ReferenceRefresh, WeightAverage


class Slope(nn.Module):
    """One weight whose gradient is 1: with SGD of rate 1 it falls by 1 a step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return {"loss": self.weight.sum() + 0.0 * x.sum()}


class Recorder(TrainerCallback):
    def __init__(self, *modules):
        self.modules, self.seen = modules, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append([module.weight.item() for module in self.modules])


def trainer_of(policy, tmp_path, *callbacks, steps=4):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        max_grad_norm=0.0,
    )
    data = [{"x": torch.zeros(1)} for _ in range(8)]
    sgd = torch.optim.SGD(policy.parameters(), lr=1.0)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
    return Trainer(policy, arguments, train_dataset=data, callbacks=list(callbacks), optimizers=(sgd, constant))


def test_the_reference_is_refreshed_every_so_many_steps(tmp_path):
    policy = Slope()
    reference = frozen_copy(policy)
    recorder = Recorder(policy, reference)
    trainer_of(policy, tmp_path, ReferenceRefresh(reference, every=2), recorder).train()
    assert recorder.seen == [[-1, 0], [-2, -2], [-3, -2], [-4, -4]]


def test_softly_too(tmp_path):
    policy = Slope()
    reference = frozen_copy(policy)
    recorder = Recorder(reference)
    trainer_of(policy, tmp_path, ReferenceRefresh(reference, every=1, alpha=0.5), recorder, steps=3).train()
    assert recorder.seen == [[-0.5], [-1.25], [-2.125]]


def test_the_average_follows(tmp_path):
    policy, average = Slope(), WeightAverage(decay=0.5)
    trainer_of(policy, tmp_path, average, steps=3).train()
    assert average.average.weight.item() == -2.125
    assert policy.weight.item() == -3


def test_acceleration_between_trainings(tmp_path):
    policy = Slope()
    reference = frozen_copy(policy)
    callback = Acceleration(reference, alpha=0.5)
    begun, left = [], []
    for _ in range(3):
        trainer_of(policy, tmp_path, callback, steps=2).train()
        begun.append(reference.weight.item())
        left.append(policy.weight.item())
    # begins at 0; at -2 + ½(-2 - 0) = -3; at -5 + ½(-5 + 2) = -6.5
    assert begun == [0.0, -3.0, -6.5]
    assert left == [-2.0, -5.0, -8.5]


def test_what_callbacks_refuse():
    with pytest.raises(TypeError, match="reference: expected a module, got NoneType"):
        ReferenceRefresh(None)
    with pytest.raises(TypeError, match="reference"):
        Acceleration(None)
    with pytest.raises(ValueError, match="every"):
        ReferenceRefresh(Slope(), every=0)
    with pytest.raises(ValueError, match="alpha"):
        Acceleration(Slope(), alpha=-1.0)
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(decay=1.5)
    precomputed = types.SimpleNamespace(precompute_ref_log_probs=True)
    for callback in (ReferenceRefresh(Slope()), Acceleration(Slope())):
        with pytest.raises(ValueError, match="precompute_ref_log_probs"):
            callback.on_train_begin(precomputed, None, None, model=Slope())
