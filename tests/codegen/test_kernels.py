"""Generated kernels give what the CPU evaluator gives, both ways: operators, levels, orders, dtypes, hostile values."""

import functools

import pytest
import test_operators
import torch
import worlds
from torch.utils.dlpack import to_dlpack

from prefuse._prefuse import Graph
from prefuse.language import pair_objective
from tests.codegen import harness
from tests.codegen.graphs import SPACES, Batch, RandomGraph
from tests.codegen.harness import Library, Memory, Recorded, plan, recording, workspace_of
from tests.emulator import emulator

pytestmark = pytest.mark.needs("compiler")

# Responses of more than a warp's and of more than a chunk's tokens; as in `worlds`, three groups of 3, 1 and 2.
LARGE = [[300, 1, 40], [0], [5, 2500]]
# A group without responses, a response without tokens.
GROUPS = [[3, 1, 4], [2], [], [0, 5], [40, 0, 1, 7]]
SEEDS = range(24)


def _pairs(case):
    def function(token, functions):
        pairs = token.response.group.pairs()
        i, j = pairs
        return test_operators.PAIRS[case](i, j, pairs, token.response, functions)

    return function


CASES = {**test_operators.CASES, **{f"pairs: {case}": _pairs(case) for case in test_operators.PAIRS}}


@functools.cache
def _recorded(large):
    runs = {}
    for case, function in CASES.items():
        order = range(6) if case == "sort in batch" else worlds.ORDER
        with recording() as log:
            worlds.compare(function, LARGE if large else worlds.GROUPS, order)
        runs[case] = log
    return runs, Library([run for log in runs.values() for run in log])


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case, large):
    runs, library = _recorded(large)
    for run in runs[case]:
        library.check(run)


@functools.cache
def _random(hostile):
    batch, runs = Batch(GROUPS), []
    for seed in SEEDS:
        graph = RandomGraph(seed)
        runs.append(batch.run(graph.program(), graph.values(batch, hostile), {"alpha": 0.8}))
    return runs, Library(runs)


@pytest.mark.parametrize("hostile", [False, True], ids=["finite", "hostile"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_graph(seed, hostile):
    runs, library = _random(hostile)
    library.check(runs[seed], order=emulator.DESCENDING if seed % 2 else emulator.SHUFFLED)


def _every_level(dtype=torch.float64):
    """A graph with a column at each level, loads through every dtype."""
    graph = Graph("dtypes", SPACES)
    response = graph.column("response", "response")
    token = graph.column("token", "token")
    group = graph.column("group", "group")
    product = graph.binary("mul", graph.binary("mul", token, response), group)
    outputs = [product, graph.reduce("sum", product, "group"), graph.reduce("logsumexp", response, "batch")]
    return graph.compile([*outputs, graph.rank(response, "group", True)])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool], ids=str
)
def test_dtypes_and_strides(dtype):
    batch = Batch(GROUPS)
    counts = batch.counts
    columns = {
        "token": (torch.randn(2 * counts["token"]) * 3).to(dtype)[::2],
        "response": (torch.randn(counts["response"]) * 3).to(dtype),
        "group": torch.full((1,), 2.0).to(dtype).expand(counts["group"]),
    }
    run = batch.run(_every_level(), columns, {}, torch.float32)
    Library([run]).check(run)


def _without_elements():
    batch = Batch([], other=0)
    columns = {name: torch.empty(0, dtype=torch.float64) for name in ("token", "response", "group")}
    return batch.run(_every_level(), columns, {})


def test_nothing_at_all():
    run = _without_elements()
    Library([run]).check(run)


def test_elements_are_taken_by_index():
    """Columns and outputs with elements in another order, and fewer elements than there might be."""
    graph = Graph("taken", {"group": "batch", "token": "group"})
    x = graph.column("x", "token")
    total = graph.reduce("sum", x, "group")
    program = graph.compile([graph.binary("sub", x, total), total, graph.reduce("mean", x, "batch")])
    padded, mask = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    take = torch.argsort(mask.reshape(-1), descending=True, stable=True)
    offsets = torch.tensor([0, 2, 2, 6])
    values = padded.reshape(-1)[take[:6]]
    sums = torch.stack([values[:2].sum(), values[:0].sum(), values[2:].sum()])
    expected = torch.zeros(12, dtype=torch.float64)
    expected[take[:6]] = values - sums.repeat_interleave(offsets.diff())
    for one_block in (True, False):
        outputs = torch.zeros(12, dtype=torch.float64), sums.new_zeros(3), sums.new_zeros(())
        workspace = torch.full((200,), float("nan"), dtype=torch.float64)
        launches = program.cuda_plan(
            [(to_dlpack(padded.reshape(-1)), to_dlpack(take))],
            [],
            [3, to_dlpack(offsets)],
            {"token": 12},
            [(to_dlpack(outputs[0]), to_dlpack(take)), to_dlpack(outputs[1]), to_dlpack(outputs[2])],
            to_dlpack(workspace),
            one_block,
        )
        tensors = [(padded, False), (take, False), (offsets, False), (workspace, True)]
        tensors += [(output, True) for output in outputs]
        emulator.run(launches, [emulator.buffer(*entry) for entry in tensors])
        torch.testing.assert_close(outputs[0], expected)
        torch.testing.assert_close(outputs[1], sums)
        torch.testing.assert_close(outputs[2], values.mean())


def test_equal_segments_need_no_offsets():
    graph = Graph("rectangle", {"group": "batch", "response": "group"})
    x = graph.column("x", "response")
    i, j = (graph.project(x, side) for side in "ij")
    outputs = [
        graph.reduce("max", graph.binary("sub", i, j), "group"),
        graph.binary("sub", x, graph.reduce("mean", x, "group")),
    ]
    program = graph.compile(outputs)
    batch = Batch([[0] * 4] * 6)
    run = batch.run(program, {"x": torch.randn(24, dtype=torch.float64)}, {})
    run.offsets = [6, 24]
    run.counts = {}
    Library([run]).check(run)


def test_offsets_out_of_bounds_touch_nothing():
    """The emulator raises where a byte outside of the arrays is read or written (see below)."""
    run = Batch([[3, 4], [5]]).run(_every_level(), _columns(7 + 5, 3, 2), {})
    run.offsets = [cut if isinstance(cut, int) else Memory(bad) for cut, bad in zip(run.offsets, _BAD, strict=True)]
    library = Library([run])
    library.run(run, True)
    library.run(run, False)


def test_a_byte_outside_of_an_array_is_found(monkeypatch):
    run = Batch([[3, 4], [5]]).run(_every_level(), _columns(7 + 5, 3, 2), {})
    library = Library([run])
    whole = harness.reach
    monkeypatch.setattr(harness, "reach", lambda tensor: (whole(tensor)[0], whole(tensor)[1] - 1))
    with pytest.raises(emulator.EmulationError):
        library.run(run, True)


_BAD = [torch.tensor([]), torch.tensor([0, 9, 3]), torch.tensor([5, -4, 1 << 40, 7])]


def _columns(tokens, responses, groups):
    sizes = {"token": tokens, "response": responses, "group": groups}
    return {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}


def _scored(count, **settings):
    @pair_objective
    def secret_name(pair, *, secret_weight=0.5):
        return (
            -(secret_weight * pair.response("secret_role").logp * pair["secret_column"]).mean("batch")
            * pair.chosen.logp
        )

    names = "chosen_logps", "secret_role_logps", "secret_column"
    with recording() as log:
        secret_name(**{name: torch.randn(count) for name in names}, **settings)
    return log[0]


def _texts(run, one_block):
    return [launch["sources"][-1][1] for launch in plan(run, run.outputs, None, one_block)]


def test_no_name_of_a_user_reaches_the_source():
    run = _scored(5)
    assert not any("secret" in text for one_block in (True, False) for text in _texts(run, one_block))


def test_numbers_and_sizes_compile_nothing():
    first, other = _scored(5), _scored(3000, secret_weight=0.7)
    for one_block in (True, False):
        assert _texts(first, one_block) == _texts(other, one_block)


def test_small_batches_take_one_launch():
    run = _scored(64)
    outputs = run.outputs
    assert [launch["kernel"] for launch in plan(run, outputs, None, None)] == ["objective_one_block"]
    assert len(plan(_scored(100_000), _scored(100_000).outputs, None, None)) > 1


def test_workspace_follows_from_sizes():
    assert workspace_of(_scored(64)) == workspace_of(_scored(64, secret_weight=2.0)) < workspace_of(_scored(100_000))


def _sorted_batch(count):
    graph = Graph("sorted", {"group": "batch"})
    x = graph.column("x", "group")
    program = graph.compile([graph.sort(x, x, "batch", False)])
    values = ("f64", (count,), (1,))
    return program.cuda_plan([values], [], [count], {}, [values], None)


def test_sorting_a_very_large_batch_is_refused():
    assert len(_sorted_batch(1 << 17)) > 1
    with pytest.raises(ValueError, match=r"sorted or ranked over the whole batch.*131072.*got 131073"):
        _sorted_batch((1 << 17) + 1)


def test_what_does_not_fit_is_named():
    run = _scored(6)
    outputs = run.outputs
    short = Recorded(run.program, [*run.columns[:-1], Memory(torch.zeros(5))], run.parameters, run.offsets, [], {})
    with pytest.raises(ValueError, match=r"expected 6 values.*5"):
        plan(short, outputs, None, True)
    with pytest.raises(ValueError, match="outputs: expected"):
        plan(run, outputs[:-1], None, True)
