"""The kernels of columns on the CPU, beside PyTorch in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from prefuse._backends import columns as backend
from prefuse._backends.columns import Gathered, Strips, ToInput
from tests.emulator import emulator
from tests.emulator.backend import Emulated

pytestmark = pytest.mark.needs("compiler")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
EPS = 2.0**-6


def drawn(rows: int, width: int, dtype: torch.dtype, strip_rows: int, pad: int = 0, seed: int = 0) -> Strips:
    """Strips of random rows, some labels being nobody's, with rows `pad` numbers apart."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, width + pad, generator=generator, dtype=F64)).to(dtype)[:, :width]
    wide = F64 if dtype == F64 else F32
    factors = (0.5 + torch.rand(rows, generator=generator, dtype=F64)).to(wide)
    lse = torch.logsumexp(logits.double() * factors.double()[:, None] * math.log(2), 1).to(wide)
    labels = torch.randint(-3, width, (rows,), generator=generator)
    return Strips(logits, factors, lse, labels, strip_rows)


def probabilities(strips: Strips) -> torch.Tensor:
    """Of all columns, in float64; 0 of labels."""
    z = strips.logits.double() * strips.factors.double()[:, None] * math.log(2)
    p = (z - strips.lse.double()[:, None]).exp()
    own = torch.arange(p.shape[1]) == strips.labels[:, None]
    return p.masked_fill(own, 0)


def found(strips: Strips, eps: float, device: Emulated) -> tuple[torch.Tensor, torch.Tensor]:
    active = torch.zeros(strips.number, strips.logits.shape[1], dtype=torch.bool)
    tails = torch.full(active.shape, 777.0, dtype=strips.logits.dtype)
    device.columns_find(strips, eps, active, tails)
    return active, tails


def gathered(strips: Strips, lists: list[torch.Tensor], device: Emulated) -> Gathered:
    starts = [0]
    for columns in lists:
        starts.append(starts[-1] + len(columns))
    parts = backend.parts(max(map(len, lists)))
    made = Gathered(
        torch.cat(lists),
        torch.tensor(starts),
        torch.full((strips.strip_rows * starts[-1],), 777.0, dtype=strips.logits.dtype),
        torch.zeros(parts, len(strips.lse), dtype=strips.lse.dtype),
    )
    device.columns_gather(strips, made)
    return made


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize(
    ("rows", "width", "strip_rows", "pad"),
    [(7, 100, 7, 4), (7, 100, 3, 4), (300, 40, 300, 0), (300, 37, 128, 0), (5, 2500, 2, 1), (1, 1, 1, 0)],
)
def test_what_is_found(dtype, rows, width, strip_rows, pad):
    strips = drawn(rows, width, dtype, strip_rows, pad)
    active, tails = found(strips, EPS, Emulated())
    for number, p in enumerate(probabilities(strips).split(strip_rows)):
        largest = p.max(0).values
        clear = (largest / EPS - 1).abs() > 1e-4
        assert torch.equal(active[number][clear], (largest >= EPS)[clear])
        expected = torch.where(active[number], 0, p.sum(0) / EPS)
        torch.testing.assert_close(tails[number].double(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize(("rows", "width", "strip_rows"), [(7, 100, 3), (300, 40, 300), (6, 5000, 4)])
def test_what_is_gathered(dtype, rows, width, strip_rows):
    strips = drawn(rows, width, dtype, strip_rows)
    lists = [torch.randperm(width)[: width - 5].sort().values for _ in range(strips.number)]
    lists[-1][-3:] = -1
    made = gathered(strips, lists, Emulated())
    for number, p in enumerate(probabilities(strips).split(strip_rows)):
        columns, start = lists[number], int(made.starts[number])
        values = made.values[start * strip_rows :][: len(p) * len(columns)].view(len(p), len(columns))
        expected = torch.where(columns < 0, 0, p[:, columns.clamp(min=0)])
        torch.testing.assert_close(values.double(), expected, rtol=torch.finfo(dtype).eps + 1e-5, atol=1e-7)
        sums = made.sums[:, number * strip_rows :][:, : len(p)].double().sum(0)
        torch.testing.assert_close(sums, expected.sum(1), rtol=1e-5, atol=1e-6)


def test_the_last_strip_writes_its_own_rows_alone():
    strips = drawn(5, 64, F32, 3)
    lists = [torch.arange(64), torch.arange(32)]
    made = gathered(strips, lists, Emulated())
    assert (made.values[3 * 64 + 2 * 32 :] == 777).all()


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_order_of_threads_does_not_matter(dtype):
    strips = drawn(290, 300, dtype, 200)
    one = found(strips, EPS, Emulated())
    lists = [torch.arange(300), torch.arange(100)]
    both = gathered(strips, lists, Emulated())
    for order in (emulator.DESCENDING, emulator.SHUFFLED):
        for a, b in zip(one, found(strips, EPS, Emulated(order=order)), strict=True):
            assert torch.equal(a, b)
        other = gathered(strips, lists, Emulated(order=order))
        assert torch.equal(both.values, other.values) and torch.equal(both.sums, other.sums)


@pytest.mark.parametrize("lse", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_finite_lse_has_no_probabilities(lse):
    strips = drawn(4, 50, F32, 4)
    strips.logits[2] = lse
    strips.lse[2] = lse
    active, tails = found(strips, EPS, Emulated())
    others = [0, 1, 3]
    alone = found(Strips(*(part[others] for part in strips[:-1]), 3), EPS, Emulated())
    assert torch.equal(active, alone[0]) and torch.equal(tails, alone[1])
    made = gathered(strips, [torch.arange(50)], Emulated())
    assert (made.values.view(4, 50)[2] == 0).all() and made.sums.isfinite().all() and (made.sums[:, 2] == 0).all()


@pytest.mark.parametrize(("total", "product"), [(F32, BF16), (F32, F32), (F64, F64), (F32, F16)])
@pytest.mark.parametrize("size", [1, 8, 100, 3000])
def test_rows_are_added(total, product, size):
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(20, size, generator=generator, dtype=F64).to(total)
    added = torch.randn(6, size, generator=generator, dtype=F64).to(product)
    columns = torch.tensor([3, 0, -1, 19, 7, -1])
    expected = sums.clone()
    for column, row in zip(columns.tolist(), added, strict=True):
        if column >= 0:
            expected[column] += row.to(total)
    Emulated().columns_add(sums, added, columns)
    assert torch.equal(sums, expected)


def test_rows_are_added_to_a_slice():
    sums, added = torch.zeros(5, 40), torch.ones(2, 16)
    Emulated().columns_add(sums[:, 8:24], added, torch.tensor([4, 1]))
    assert (sums[[4, 1], 8:24] == 1).all() and sums.sum() == 32


# -- products ---------------------------------------------------------------------------------------------------------


class Multiplied(NamedTuple):
    """Strips with their probabilities, and what they are multiplied with."""

    call: ToInput
    lists: list[torch.Tensor]
    values: list[torch.Tensor]


def products(
    dtype: torch.dtype, rows: list[int], counts: list[int], size: int, classes: int = 500, pad: int = 0
) -> Multiplied:
    """Strips of so many rows, with so many columns each, of which the last three of a list are none."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=F64)

    lists = [torch.randperm(classes, generator=generator)[:count].sort().values for count in counts]
    for columns in lists:
        columns[-3:] = -1
    values = [random(n, count).to(dtype) for n, count in zip(rows, counts, strict=True)]
    table, first, start, offset = [], 0, 0, 0
    for n, count in zip(rows, counts, strict=True):
        table.append((first, first + n, start, start + count, offset))
        first, start, offset = first + n, start + count, offset + max(rows) * count
    laid_out = torch.full((offset,), math.nan, dtype=dtype)
    for (*_, at), own in zip(table, values, strict=True):
        laid_out[at : at + own.numel()] = own.flatten()
    call = ToInput(
        laid_out,
        torch.cat(lists),
        torch.tensor(table),
        random(classes, size + pad).to(dtype)[:, :size],
        random(first).to(F32),
        random(first).to(F32),
        random(len(rows), size).to(F32),
        torch.full((first, size), 777.0),
        max(rows),
    )
    return Multiplied(call, lists, values)


SHAPES = [
    ([5], [8], 8, 0),
    ([128, 128, 70], [64, 96, 200], 136, 0),
    ([256, 256, 1], [40, 8, 320], 64, 8),
    ([130], [32], 256, 16),
]


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("rows", "counts", "size", "pad"), SHAPES)
def test_columns_times_the_weight(dtype, rows, counts, size, pad):
    call, lists, values = products(dtype, rows, counts, size, pad=pad)
    Emulated().columns_to_input(call)
    for number, (columns, own) in enumerate(zip(lists, values, strict=True)):
        first, last = call.strips[number, :2].tolist()
        there = columns >= 0
        product = own[:, there].double() @ call.weight[columns[there]].double()
        expected = call.factors[first:last, None] * product + call.tails[first:last, None] * call.means[number]
        torch.testing.assert_close(call.out[first:last].double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_rows_of_the_weight_that_no_column_names_are_not_looked_at():
    """Nor do places without a column bring in anything."""
    call, lists, _ = products(BF16, [70, 3], [64, 16], 40)
    Emulated().columns_to_input(call)
    others = torch.ones(len(call.weight), dtype=torch.bool)
    others[torch.cat(lists).clamp(min=0)] = False
    weight = call.weight.clone()
    weight[others] = math.nan
    again = call._replace(weight=weight, out=torch.zeros_like(call.out))
    if 0 not in torch.cat(lists):
        weight[0] = math.nan
    Emulated().columns_to_input(again)
    assert torch.equal(call.out, again.out)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(
    ("rows", "count", "size"), [(5, 8, 8), (128, 136, 136), (256, 40, 64), (130, 300 // 8 * 8, 16)]
)
def test_columns_times_inputs(dtype, rows, count, size):
    generator = torch.Generator().manual_seed(1)
    values, inputs = (torch.randn(rows, n, generator=generator, dtype=F64).to(dtype) for n in (count, size))
    columns = torch.randperm(400, generator=generator)[:count]
    columns[1::5] = -1
    wide = torch.randn(400, size + 8, generator=generator)
    total = wide[:, 4 : 4 + size]
    before = total.double()
    Emulated().columns_to_weight(total, values, columns, inputs)
    there = columns >= 0
    before[columns[there]] += (values.double().T @ inputs.double())[there]
    torch.testing.assert_close(total.double(), before, rtol=1e-4, atol=1e-4)
    untouched = torch.ones(400, dtype=torch.bool)
    untouched[columns[there]] = False
    assert torch.equal(total[untouched].double(), before[untouched])


@pytest.mark.parametrize("order", [emulator.DESCENDING, emulator.SHUFFLED])
def test_the_order_of_threads_does_not_matter_to_products(order):
    (call, _, values), other = products(BF16, [140, 60], [72, 136], 72), Emulated(order=order)
    Emulated().columns_to_input(call)
    again = call._replace(out=torch.zeros_like(call.out))
    other.columns_to_input(again)
    assert torch.equal(call.out, again.out)
    totals = [torch.zeros(500, 72), torch.zeros(500, 72)]
    for total, device in zip(totals, (Emulated(), other), strict=True):
        device.columns_to_weight(total, values[0], call.columns[:72], values[0].clone())
    assert torch.equal(*totals)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(500, 12, dtype=BF16)}, r"weight: dtype bf16 of shape \[500, 12\].*whole units of 8"),
        ({"weight": torch.zeros(500, 16)}, "weight: dtype f32"),
        ({"means": torch.zeros(1, 8)}, r"means: dtype f32, shape \[1, 8\].*expected f32 of shape \[1, 16\]"),
        ({"strips": torch.zeros(2, 5, dtype=torch.int64)}, r"strips: .*expected i64 of shape \[1, 5\]"),
        ({"values": torch.zeros(41, dtype=BF16)[1:]}, "values: expected to begin at a 16-byte boundary"),
    ],
)
def test_what_cannot_be_multiplied_is_said(changed, message):
    call = products(BF16, [5], [8], 16).call._replace(**changed)
    with pytest.raises(ValueError, match=message):
        Emulated().columns_to_input(call)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"total": torch.zeros(9, 8)}, r"sum: dtype f32 of shape \[9, 8\].*expected f32 of shape \[V, 16\]"),
        ({"total": torch.zeros(9, 16, dtype=F64)}, "sum: dtype f64"),
        ({"inputs": torch.zeros(4, 16, dtype=BF16)}, r"inputs: dtype bf16, shape \[4, 16\].*of shape \[5, 16\]"),
        ({"values": torch.zeros(5, 9, dtype=BF16)}, "values: .*whole units of 8"),
    ],
)
def test_what_cannot_be_added_is_said(changed, message):
    given = {
        "total": torch.zeros(9, 16),
        "values": torch.zeros(5, 8, dtype=BF16),
        "columns": torch.arange(8),
        "inputs": torch.zeros(5, 16, dtype=BF16),
    }
    with pytest.raises(ValueError, match=message):
        Emulated().columns_to_weight(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strip_rows": 0}, "logits: dtype f32 of shape .* in strips of 0, expected floats"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, r"labels: dtype i64, shape \[6\].*expected i64 of shape \[7\]"),
        ({"lse": torch.zeros(7, dtype=F64)}, r"lse: dtype f64.*expected f32 of shape \[7\]"),
        ({"logits": torch.zeros(100, 7).T}, "logits: strides .*one behind the other"),
    ],
)
def test_what_does_not_fit_together_is_said(changed, message):
    strips = drawn(7, 100, F32, 4)._replace(**changed)
    with pytest.raises(ValueError, match=message):
        Emulated().columns_find(strips, EPS, torch.zeros(2, 100, dtype=torch.bool), torch.zeros(2, 100))
