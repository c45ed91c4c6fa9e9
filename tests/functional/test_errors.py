"""docs/errors.md, row by row: each line of its tables is an input made here, and the message is compared in full.

The tables of the fused head are checked in `tests/linear/test_errors.py`.
"""

import pathlib
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prefuse
from prefuse import curate, metrics, viz
from prefuse.functional import response_lengths, sequence_logps, token_logps, token_stats
from prefuse.losses.preference import pair_loss, preference_loss
from prefuse.objectives import dpo, kto
from tests.devices import here, normal
from tests.error_page import HEAD, PAGE, rows

pytestmark = pytest.mark.usefixtures("device")

TABLE = rows(PAGE[: PAGE.index(HEAD)])
OUTCOMES = re.findall(r"^\| (.+?) \| ([^|`]+) \|$", PAGE[PAGE.index("## What is not an error") :], re.MULTILINE)[2:]

X, Y = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
PER_TOKEN = torch.tensor([[1.0, 1, 1], [-1, 1, 1]])


def label(row, position, value):
    labels = Y.clone()
    labels[row, position] = value
    return labels


def on_a_device_without_a_backend():
    with torch._subclasses.FakeTensorMode():
        return token_logps(torch.empty(2, 3, 5, device="mps:0"), torch.empty(2, 3, dtype=torch.int64, device="mps:0"))


def backward_twice():
    loss = token_logps(1.0 * X.clone().requires_grad_(), Y, inplace=True).sum()
    loss.backward(retain_graph=True)
    loss.backward()


def second_derivative():
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(token_logps(x, Y).sum(), x, create_graph=True)
    grad.sum().backward()


def packed(offsets):
    return sequence_logps(X.view(6, 5), Y.view(6), cu_seqlens=torch.as_tensor(offsets))


def loss(objective, **changes):
    return preference_loss(objective, **{"logits": X, "labels": Y} | changes)


COLUMNS = {name: torch.zeros(4) for name in dpo.columns}
PAIR = COLUMNS["chosen_logps"], COLUMNS["rejected_logps"]


def scored(**changes):
    return dpo(**COLUMNS | changes)


def without_matplotlib():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        patch.delitem(sys.modules, "prefuse._display.figure", raising=False)
        viz.margin(dpo)


def leaf():
    return X.clone().requires_grad_()


DATA = {"prompt": "a", "chosen": "b", "rejected": "c"}
LINE = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def written(name, content):
    """A file in the folder of the test."""
    pathlib.Path(name).write_text(content)
    return name


CASES = {
    "logits: a list": lambda: token_logps([[0.0]], Y),
    "logits: a model's output": lambda: token_logps(SimpleNamespace(logits=X), Y),
    "logits: int64": lambda: token_logps(X.long(), Y),
    "logits: a number, shape ()": lambda: token_logps(torch.tensor(1.0), Y),
    "logits: no classes, shape (2, 3, 0)": lambda: token_logps(X[..., :0], Y),
    "logits: on a device without a backend": on_a_device_without_a_backend,
    "logits: sparse": lambda: token_logps(X.to_sparse(), Y),
    "labels: float32": lambda: token_logps(X, Y.float()),
    "labels: one dimension too many, (2, 3, 1)": lambda: token_logps(X, Y[..., None]),
    "labels: one position short, (2, 2)": lambda: token_logps(X, Y[:, :2]),
    "labels: on another device": lambda: token_logps(X, Y.to("meta")),
    "labels: NumPy with torch logits": lambda: token_logps(X, Y.numpy()),
    "labels: torch with NumPy logits": lambda: token_logps(X.numpy(), Y),
    "labels: 5 at position (1, 2), five classes": lambda: token_logps(X, label(1, 2, 5)),
    "labels: −1 at position (0, 1)": lambda: token_logps(X, label(0, 1, -1)),
    "mask: float32": lambda: token_logps(X, Y, mask=torch.ones(2, 3)),
    "mask: shape (3,)": lambda: token_logps(X, Y, mask=torch.ones(3, dtype=torch.bool)),
    "ignore_index: 1.5": lambda: token_logps(X, Y, ignore_index=1.5),
    "temperature: 0": lambda: token_logps(X, Y, temperature=0),
    "temperature: NaN": lambda: token_logps(X, Y, temperature=float("nan")),
    "temperature: a string": lambda: token_logps(X, Y, temperature="hot"),
    "temperature: −1 for token (1, 0)": lambda: token_logps(X, Y, temperature=PER_TOKEN),
    "temperature: shape (2,)": lambda: token_logps(X, Y, temperature=torch.ones(2)),
    "temperature: requires grad": lambda: token_logps(X, Y, temperature=torch.ones(2, 3, requires_grad=True)),
    "softcap: −30": lambda: token_logps(X, Y, softcap=-30.0),
    "scale: 0": lambda: token_logps(X, Y, scale=0.0),
    "stats: none": lambda: token_stats(X, Y, ()),
    "stats: an unknown name": lambda: token_stats(X, Y, ("logp", "logprob")),
    "stats: kl without reference": lambda: token_stats(X, Y, "kl"),
    "reference_logits: another shape": lambda: token_stats(X, Y, "kl", reference_logits=X[..., :4]),
    "stats: a number": lambda: token_stats(X, Y, 3),
    "k: 0": lambda: token_stats(X, Y, "topk_mass", k=0),
    "k: 65": lambda: token_stats(X, Y, "topk_mass", k=65),
    "inplace: a string": lambda: token_logps(X, Y, inplace="no"),
    "inplace: logits are a leaf": lambda: token_logps(leaf(), Y, inplace=True),
    "inplace: expanded logits": lambda: token_logps((1.0 * leaf()[:1]).expand(2, 3, 5), Y, inplace=True),
    "inplace: classes that do not lie together": lambda: token_logps(
        1.0 * leaf().transpose(1, 2).contiguous().transpose(1, 2), Y, inplace=True
    ),
    "inplace: NumPy": lambda: token_logps(X.numpy(), Y.numpy(), inplace=True),
    "inplace: backward twice": backward_twice,
    "second derivative": second_derivative,
    "vmap": lambda: torch.vmap(token_logps)(X, Y),
    "a statistic that was not asked for": lambda: token_stats(X, Y).entropy,
    "labels: one dimension, no cu_seqlens": lambda: sequence_logps(X.view(6, 5), Y.view(6)),
    "labels: two rows with cu_seqlens": lambda: sequence_logps(X, Y, cu_seqlens=torch.tensor([0, 6])),
    "cu_seqlens: float32": lambda: packed([0.0, 6.0]),
    "cu_seqlens: two dimensions": lambda: packed([[0, 3, 6]]),
    "cu_seqlens: ends early": lambda: packed([0, 2, 5]),
    "cu_seqlens: begins late": lambda: packed([1, 2, 6]),
    "cu_seqlens: decreases": lambda: packed([0, 4, 2, 6]),
    "average: a string": lambda: sequence_logps(X, Y, average="no"),
    "shift: a number": lambda: sequence_logps(X, Y, shift=1),
    "objective: a number": lambda: loss(3),
    "objective: an unknown name": lambda: loss("dpi"),
    "objective: a name in capitals": lambda: loss("DPO", reference=X),
    "objective: a name unlike any": lambda: loss("zzzz"),
    "responses: an odd number of them": lambda: loss(
        "simpo", logits=torch.zeros(3, 3, 5), labels=torch.zeros(3, 3, dtype=torch.int64)
    ),
    "reference: missing": lambda: loss("dpo"),
    "reference: not read": lambda: loss("simpo", reference=X),
    "reference: by another name": lambda: loss("dpo", reference_logits=X),
    "reference: an odd shape": lambda: loss("dpo", reference=torch.zeros(3)),
    "column: unknown": lambda: loss("dpo", reference=X, nonsense=torch.zeros(1)),
    "column: missing": lambda: loss("kto", reference=X),
    "pair_loss: an objective that is not of pairs": lambda: pair_loss("kto", torch.zeros(1), torch.zeros(1)),
    "pair_loss: a reference that is not read": lambda: pair_loss("simpo", *PAIR, *PAIR),
    "columns without names": lambda: dpo(*COLUMNS.values()),
    "a column: missing": lambda: dpo(**{name: COLUMNS[name] for name in COLUMNS if name != "ref_rejected_logps"}),
    "a column: misspelt": lambda: dpo(
        **{name.replace("chosen_logps", "chosen_logpss"): x for name, x in COLUMNS.items()}
    ),
    "a column: a list of words": lambda: scored(chosen_logps=["a", "b"]),
    "a column: NumPy with torch": lambda: scored(chosen_logps=np.zeros(4)),
    "a column: complex": lambda: scored(chosen_logps=torch.zeros(4, dtype=torch.complex64)),
    "a column: of strings": lambda: dpo(**dict.fromkeys(COLUMNS, np.array(list("abcd")))),
    "a column: another number of pairs": lambda: scored(rejected_logps=torch.zeros(3)),
    "beta: a string": lambda: dpo(beta="0.1"),
    "beta: −1": lambda: dpo(beta=-1.0),
    "reduction: an unknown name": lambda: scored(reduction="avg"),
    "get: a number": lambda: prefuse.objectives.get(3),
    "a sum with a number": lambda: dpo + 1,
    "a sum of two kinds": lambda: dpo + kto,
    "point_objective: no function": lambda: prefuse.point_objective(3),
    "pair_objective: an objective": lambda: prefuse.pair_objective(dpo),
    "from_torch: no function": lambda: prefuse.from_torch(3),
    "register: a function": lambda: prefuse.language.register(lambda pair: pair),
    "check: a function": lambda: prefuse.check(lambda pair: pair),
    "metrics: NumPy": lambda: metrics.ranking_accuracy(np.zeros(4), np.zeros(4)),
    "metrics: shapes that would broadcast": lambda: metrics.ranking_accuracy(PAIR[0], PAIR[1][:, None]),
    "metrics: lengths of one response alone": lambda: metrics.ranking_accuracy(*PAIR, chosen_lengths=torch.ones(4)),
    "metrics: a share of 1": lambda: metrics.idealised_ranking_accuracy(*PAIR, 1.0),
    "metrics: beta of 0": lambda: metrics.ranking_threshold(*PAIR, beta=0),
    "metrics: an unknown estimator": lambda: metrics.kl_estimate(*PAIR, estimator="k4"),
    "viz: a function": lambda: viz.contour(lambda pair: pair),
    "viz: an objective that is not of pairs": lambda: viz.margin("kto"),
    "viz: one point": lambda: viz.margin(dpo, points=1),
    "viz: without matplotlib": without_matplotlib,
    "inspect: no such file": lambda: curate.inspect("nothing.jsonl"),
    "inspect: a name that says nothing": lambda: curate.inspect(written("a.txt", "")),
    "inspect: an empty file": lambda: curate.inspect(written("a.jsonl", "")),
    "inspect: a line that is no JSON": lambda: curate.inspect(written("a.jsonl", LINE + "nothing\n")),
    "inspect: a line of CSV with fewer fields": lambda: curate.inspect(
        written("a.csv", "prompt,chosen,rejected\na,b\n")
    ),
    "inspect: other columns": lambda: curate.inspect([{"question": "a"}]),
    "inspect: no row": lambda: curate.inspect({"prompt": [], "chosen": [], "rejected": []}),
    "inspect: a number for a response": lambda: curate.inspect([{"prompt": "a", "chosen": 1, "rejected": "c"}]),
    "inspect: messages without roles": lambda: curate.inspect(
        [{"prompt": "a", "chosen": [{"from": "x", "value": "b"}], "rejected": "c"}]
    ),
    "inspect: tools that are no schemas": lambda: curate.inspect(
        [{"prompt": "a", "chosen": "b", "rejected": "c", "tools": ["x"]}]
    ),
    "inspect: an unknown name of a column": lambda: curate.inspect([DATA], columns={"good": "chosen"}),
    "inspect: a tokenizer that is none": lambda: curate.inspect([DATA], tokenizer=3),
    "inspect: sample of 0": lambda: curate.inspect([DATA], sample=0),
    "inspect: tolerance of 1": lambda: curate.inspect([DATA], tolerance=1.0),
}


@pytest.mark.cpu
def test_every_row_of_the_page_is_tested_and_every_case_documented():
    assert sorted(CASES) == sorted(passed for passed, *_ in TABLE)
    assert [passed for passed, _ in OUTCOMES] == list(NOT_ERRORS)


@pytest.mark.cpu
@pytest.mark.parametrize("passed,raises,message,more", TABLE, ids=[row[0] for row in TABLE])
def test_message(passed, raises, message, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:
        CASES[passed]()
    assert type(caught.value).__name__ == raises
    came = str(caught.value)
    assert came.startswith(message) if more else came == message


def gradient_of(x, y, function=token_logps, **options):
    x = here(x).clone().requires_grad_()
    values = function(x, here(y), **options)
    values.nansum().backward()
    return values.detach(), x.grad


def empty_batch():
    for shape in ((0, 3), (2, 0)):
        values, grad = gradient_of(torch.zeros(*shape, 5), torch.zeros(shape, dtype=torch.int64))
        assert values.shape == shape
        assert grad.shape == (*shape, 5)
        assert sequence_logps(torch.zeros(*shape, 5), torch.zeros(shape, dtype=torch.int64)).tolist() == [0] * shape[0]


def nan_in_ignored_rows():
    for bad in (np.nan, np.inf, -np.inf):
        x = X.clone()
        x[0, 1], x[1, 2] = bad, bad
        labels, mask = label(0, 1, -100), torch.tensor([[1, 1, 1], [1, 1, 0]])
        values, grad = gradient_of(x, labels, mask=mask)
        assert values[0, 1] == values[1, 2] == 0
        assert not grad[0, 1].any()
        assert not grad[1, 2].any()
        assert grad[0, 0].any()


def nan_in_a_scored_row():
    for bad in (np.nan, np.inf):
        x = X.clone()
        x[0, 1, 3] = bad
        values, grad = gradient_of(x, Y)
        clean, clean_grad = gradient_of(X, Y)
        others = torch.ones(2, 3, dtype=torch.bool)
        others[0, 1] = False
        assert values[0, 1].isnan()
        assert torch.equal(values[others], clean[others])
        assert torch.equal(grad[others], clean_grad[others])
        poisoned = here(x).clone().requires_grad_()
        token_logps(poisoned, here(Y)).sum().backward()
        assert poisoned.grad[0, 1].isnan().all()
        assert torch.equal(poisoned.grad[others], clean_grad[others])


def banned_tokens():
    x = normal(2, 3, 5, seed=0)
    x[..., 3] = -np.inf
    values, grad = gradient_of(x, Y)
    without, grad_without = gradient_of(x[..., [0, 1, 2, 4]], Y)
    torch.testing.assert_close(values, without)
    torch.testing.assert_close(grad[..., [0, 1, 2, 4]], grad_without)
    assert not grad[..., 3].any()


def banned_label():
    x = X.clone()
    x[0, 0, 0] = -np.inf
    values, grad = gradient_of(x, Y)
    assert values[0, 0] == -np.inf
    assert grad.isfinite().all()


def nothing_scored_in_a_response():
    labels = Y.clone()
    labels[1] = -100
    assert response_lengths(labels).tolist() == [3, 0]
    for average in (False, True):
        sums, grad = gradient_of(X, labels, sequence_logps, average=average)
        assert sums[1] == 0
        assert not grad[1].any()
        assert grad[0].any()


def nothing_scored_at_all():
    x = here(X).clone().requires_grad_()
    got = preference_loss("dpo", logits=x, labels=torch.full_like(here(Y), -100), reference=here(X))
    got.loss.backward()
    assert got.loss.isfinite()
    assert not x.grad.any()


def unusual_ignore_index():
    for unusual in (77, -1):
        assert token_logps(*here((X, label(0, 0, unusual))), ignore_index=unusual)[0, 0] == 0


def classes_apart():
    x = normal(2, 5, 3, seed=0).transpose(1, 2)
    values, grad = gradient_of(x, Y)
    expected, expected_grad = gradient_of(x.contiguous(), Y)
    assert torch.equal(values, expected)
    assert torch.equal(grad, expected_grad)


NOT_ERRORS = {
    "an empty batch, shape (0, 3, 5) or (2, 0, 5)": empty_batch,
    "NaN or ±inf in ignored rows": nan_in_ignored_rows,
    "NaN or +inf in a scored row": nan_in_a_scored_row,
    "−inf logits (banned tokens)": banned_tokens,
    "a label whose logit is −inf": banned_label,
    "a response with no scored token": nothing_scored_in_a_response,
    "a batch with no scored token at all": nothing_scored_at_all,
    "labels equal to ignore_index outside [0, V)": unusual_ignore_index,
    "rows whose classes do not lie together": classes_apart,
}


@pytest.mark.parametrize("passed", NOT_ERRORS)
def test_what_is_not_an_error(passed):
    NOT_ERRORS[passed]()
