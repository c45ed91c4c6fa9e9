"""`python -m prefuse doctor --compile`: what it lists, and what it does where something spills, fails or is missing."""

from __future__ import annotations

import re

import pytest

from prefuse import objectives
from prefuse.__main__ import main
from prefuse.doctor import compile_all

NAMES = objectives.names
LOG = "ptxas . {spilled} bytes spill stores, 0 bytes spill loads\nUsed {registers} registers, 128 bytes smem"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures, one kernel of `kernels/`, one objective; an NVRTC, though there may be none."""
    monkeypatch.setattr(compile_all, "ARCHITECTURES", (80, 120))
    monkeypatch.setattr(compile_all, "programs", lambda architecture: [("segment_sum", [("VALUE", "f32")])])
    monkeypatch.setattr(objectives, "names", lambda: ["aot"])


@pytest.fixture
def pretended(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that needs more registers for newer architectures, and spills for the newest in large batches."""

    def compiled(traced: object, architecture: int, one_block: bool) -> list[tuple[str, bytes, str]]:
        spilled = 24 if architecture == 120 and not one_block else 0
        entry = "objective_one_block" if one_block else "objective_part_0"
        return [(entry, b"", LOG.format(spilled=spilled, registers=architecture // 2))]

    monkeypatch.setattr(compile_all._prefuse, "cuda_nvrtc", lambda: ("libnvrtc.so", "13.2", [75, 121]))
    monkeypatch.setattr(compile_all._prefuse, "cuda_compile", lambda *_: (b"", LOG.format(spilled=0, registers=32)))
    monkeypatch.setattr(compile_all, "compiled", compiled)


def said(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> list[list[str]]:
    """The words of each line behind the doctor's own table."""
    assert main(["doctor", "--compile", *options]) == status
    _, start, report = re.split(r"^(compiled for|nothing compiled)", capsys.readouterr().out, flags=re.M)
    return [line.split() for line in (start + report).splitlines()]


@pytest.mark.needs("nvrtc")
@pytest.mark.usefixtures("few")
def test_kernels_and_objectives_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys)
    assert lines[0][:4] == ["compiled", "for", "sm_80,", "sm_120;"]
    shown = {line[3]: [int(number) for number in line[:3]] for line in lines[:-1] if line and line[0].isdigit()}
    assert list(shown)[:2] == ["segment_sum", "aot"]
    for registers, spilled, shared in (shown["segment_sum"], shown["aot"]):
        assert 16 <= registers <= 255 and spilled == 0 and shared > 0
    assert lines[-1][1:3] == ["kernels", "compiled"] and lines[-1][-2:] == ["0", "failed"]


@pytest.mark.usefixtures("pretended")
def test_one_line_has_the_largest_numbers_and_a_spill_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys)
    assert ["32", "0", "128", "segment_sum", "VALUE=f32"] in lines
    assert ["60", "24", "128", "aot"] in lines
    assert [line for line in lines if line[-1:] == ["objective_part_0"]] == [
        ["60", "24", "128", "sm_120", "objective_part_0"]
    ]
    assert lines[-1][:3] == ["6", "kernels", "compiled"] and "1 spill registers" in " ".join(lines[-1])


@pytest.mark.usefixtures("pretended")
def test_details_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--detail")
    for kernel in ("segment_sum", "objective_one_block", "objective_part_0"):
        assert [line[3] for line in lines if line[4:] == [kernel]] == ["sm_80", "sm_120"]


@pytest.mark.usefixtures("pretended")
def test_what_does_not_compile_is_named_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(kernel: str, defines: object, architecture: int, cached: bool) -> tuple[bytes, str]:
        if architecture == 120:
            raise RuntimeError("it is wrong")
        return b"", LOG.format(spilled=0, registers=32)

    monkeypatch.setattr(compile_all._prefuse, "cuda_compile", fails)
    lines = said(capsys, status=1)
    assert ["32", "0", "128", "segment_sum", "VALUE=f32"] in lines and ["sm_120:", "it", "is", "wrong"] in lines
    assert ["60", "24", "128", "aot"] in lines and lines[-1][-2:] == ["1", "failed"]


@pytest.mark.usefixtures("pretended")
def test_every_registered_objective_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "names", NAMES)
    listed = [line[3] for line in said(capsys) if len(line) == 4 and line[0].isdigit()]
    assert listed == NAMES() and len(listed) > 20


@pytest.mark.usefixtures("few")
def test_without_nvrtc_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise RuntimeError("missing: install it")

    monkeypatch.setattr(compile_all._prefuse, "cuda_nvrtc", missing)
    assert said(capsys, status=1) == [["nothing", "compiled:", "missing:", "install", "it"]]
