"""What is generated compiles with NVRTC for every architecture. Needs NVRTC, no GPU."""

import pytest

from prefuse import objectives
from prefuse._backends.nvrtc import ARCHITECTURES, resources
from prefuse.scoring.device import compiled
from tests.codegen import together
from tests.codegen.graphs import RandomGraph
from tests.cuda.machine_code import code_sections

pytestmark = pytest.mark.needs("nvrtc")


def _is_code(kernels):
    return all(code.startswith(b"\x7fELF") and "Used" in log for _, code, log in kernels)


def _spilled(kernels):
    return {entry: log for entry, _, log in kernels if resources(log).spilled}


@pytest.mark.evidence("compiled")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", objectives.names())
def test_objective(name, architecture):
    entries = together.entries(objectives.get(name)._traced(None))
    (alone, _), *parts = entries
    assert alone == "objective_one_block"
    assert [entry for entry, _ in parts] == [f"objective_part_{number}" for number in range(len(parts))] != []
    kernels = together.compiled(entries, architecture)
    assert kernels.keys() == dict(entries).keys()
    assert all(code and "Used" in log for code, log in kernels.values())
    assert not _spilled([(entry, code, log) for entry, (code, log) in kernels.items()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_together_is_what_runs_alone(architecture):
    """The extension's own way, one program for each entry point, makes the same code and needs as much."""
    traced = objectives.get("orpo")._traced(None)
    kernels = together.compiled(together.entries(traced), architecture)
    alone = [kernel for one_block in (True, False) for kernel in compiled(traced, architecture, one_block)]
    assert [entry for entry, _, _ in alone] == [entry for entry, _ in together.entries(traced)]
    assert _is_code(alone)
    for entry, cubin, log in alone:
        code, said = kernels[entry]
        assert code_sections(cubin) == {entry: code}
        assert resources(log) == resources(said)


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
