"""What is generated compiles with NVRTC for every architecture. Needs NVRTC, no GPU."""

import pytest

from prefuse import objectives
from prefuse._backends.nvrtc import ARCHITECTURES, resources
from prefuse.scoring.device import compiled
from tests.codegen.graphs import RandomGraph

pytestmark = pytest.mark.needs("nvrtc")


def _is_code(kernels):
    return all(code.startswith(b"\x7fELF") and "Used" in log for _, code, log in kernels)


def _spilled(kernels):
    return {entry: log for entry, _, log in kernels if resources(log).spilled}


@pytest.mark.evidence("compiled")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", objectives.names())
def test_objective(name, architecture):
    traced = objectives.get(name)._traced(None)
    kernels = compiled(traced, architecture, one_block=True)
    assert [entry for entry, _, _ in kernels] == ["objective_one_block"]
    parts = compiled(traced, architecture, one_block=False)
    assert [entry for entry, _, _ in parts] == [f"objective_part_{number}" for number in range(len(parts))]
    assert _is_code([*kernels, *parts])
    assert not _spilled([*kernels, *parts])


@pytest.mark.parametrize(
    "dtypes", [("f16", "f32"), ("bf16", "f64"), ("f64", "f64"), ("i64", "f32"), ("bool", "f32")], ids=str
)
@pytest.mark.parametrize("take", [False, True], ids=["plain", "taken"])
def test_random_graph(dtypes, take):
    program = RandomGraph(len(dtypes[0]) + 7 * take).program()
    columns = [(dtypes[0], take)] * len(program.columns)
    outputs = [(dtypes[1], take)] * len(program.output_spaces)
    kernels = program.cuda_compile(columns, outputs, True, 80, False)
    assert _is_code(kernels)
    assert not _spilled(kernels)
