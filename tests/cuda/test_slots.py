"""The machine code of the kernels' main loops: instructions per 16 bytes, loads in flight and spills are bounded."""

from __future__ import annotations

import pytest

from prefuse import _prefuse
from prefuse.__main__ import main
from prefuse._backends.nvrtc import prepare
from prefuse.doctor import slots
from prefuse.doctor.machine_code import Loop, disassembler, loops
from prefuse.doctor.slots import Counted, count, main_loops

# Slots per 16 bytes by architecture (the best seen with NVRTC 13.2, some more for other compilers), 16-byte loads in
# flight, and the blocks that the registers of a multiprocessor have to hold.
LIMITS: dict[str, tuple[dict[int, float], int, int]] = {
    "rows_forward bf16 logp,lse": ({80: 44, 90: 42, 100: 56, 120: 44}, 4, 3),
    "rows_forward f32 logp,lse": ({80: 23, 90: 23, 100: 22, 120: 23}, 4, 4),
    "rows_forward bf16 moments": ({80: 76, 90: 74, 100: 75, 120: 76}, 4, 3),
    "rows_forward bf16 kl": ({80: 150, 90: 148, 100: 150, 120: 150}, 4, 2),
    "rows_backward bf16 logp,lse": ({80: 45, 90: 44, 100: 58, 120: 44}, 4, 3),
    "rows_backward f32 logp,lse": ({80: 24, 90: 24, 100: 24, 120: 23}, 4, 4),
    "rows_forward f32 kl": ({100: 86, 120: 88}, 4, 3),
    "rows_backward f32 kl": ({100: 68, 120: 66}, 4, 3),
    "rows_backward bf16 kl": ({90: 130}, 4, 2),
    "rows_backward bf16 logp,lse,entropy": ({90: 61, 120: 60}, 4, 3),
    "rows_both bf16 logp,lse,entropy": ({90: 125, 120: 120}, 4, 3),
    "rows_both bf16 logp,lse": ({90: 95, 100: 112, 120: 90}, 4, 3),
    "rows_both f32 logp,lse": ({90: 55, 100: 47, 120: 48}, 4, 4),
    "columns_find bf16": ({80: 73, 90: 73, 100: 63, 120: 64}, 4, 2),
    "distance_forward bf16": ({90: 44}, 6, 2),
    "distance_backward bf16": ({90: 74}, 6, 2),
}

# A scheduler issues an instruction of the special function unit in eight clocks, any other in one. Before one
# exponential in eight was computed on the FMA pipes of B200: 64 clocks for 16 bytes per thread (forward), 128 (both).
CLOCKS: dict[str, dict[int, float]] = {
    "rows_forward bf16 logp,lse": {80: 64, 90: 64, 100: 56, 120: 64},
    "rows_both bf16 logp,lse": {90: 128, 100: 112, 120: 128},
}


@pytest.mark.needs("nvrtc")
@pytest.mark.needs("nvdisasm")
@pytest.mark.parametrize("architecture", slots.ARCHITECTURES)
def test_main_loops_stay_short(architecture: int) -> None:
    prepare()
    limits = {name: (most[architecture], *more) for name, (most, *more) in LIMITS.items() if architecture in most}
    counted = {found.name: found for found in count(architecture, disassembler() or "", limits)}
    assert counted.keys() == limits.keys()
    too_much = [
        str(found)
        for name, found in counted.items()
        for most, in_flight, blocks in [limits[name]]
        if found.slots > most or found.in_flight < in_flight or found.blocks < blocks or found.spilled
    ]
    too_much += [
        f"{name}: {max(found.slots, 8 * found.special)} clocks, at most {CLOCKS[name][architecture]}"
        for name, found in counted.items()
        if architecture in CLOCKS.get(name, {}) and max(found.slots, 8 * found.special) > CLOCKS[name][architecture]
    ]
    assert not too_much, "\n".join(too_much)


CODE = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   ISETP.GE.AND P0, PT, R0, 0x2, PT ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.EF.128 R8, desc[UR4][R2.64+0x1000] ;
        /*0050*/                   FADD R1, R4, R8 ;
        /*0060*/                   LDG.E.EF.128 R12, desc[UR4][R2.64+0x2000] ;
        /*0070*/               @P1 BRA `(.L_x_3) ;
        /*0080*/                   FADD R1, R1, R12 ;
        /*0090*/                   FADD R1, R1, R12 ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_4) ;
.L_x_2:
        /*00b0*/                   LDG.E.EF.U16 R4, desc[UR4][R2.64] ;
.L_x_4:
        /*00c0*/               @P2 BRA `(.L_x_1) ;
.L_x_5:
        /*00d0*/                   LDS.128 R4, [R3] ;
        /*00e0*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*00f0*/                   BRA P0, `(.L_x_5) ;
        /*0100*/                   EXIT ;
"""


def test_the_fast_path_is_the_shortest_that_moves_whole_16_bytes() -> None:
    assert loops(CODE) == [Loop(9, 3, 0, 0, in_flight=2), Loop(3, 0, 1, 1, in_flight=0)]
    assert main_loops(loops(CODE), 1) == (9 / 3 + 3, 0, Loop(9, 3, 0, 0, 2))


def test_code_without_such_a_loop_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no loop that loads 16 bytes"):
        main_loops(loops("/*0000*/ EXIT ;"), 1)


def test_the_doctor_prints_a_line_per_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_prefuse, "cuda_nvrtc", lambda: ("libnvrtc.so", "13.2", [80, 90]))
    monkeypatch.setattr(slots, "disassembler", lambda: "nvdisasm")
    monkeypatch.setattr(
        slots, "count", lambda sm, _: [Counted("rows_both bf16 logp,lse", sm, 204.75, 16.0, 4, 0, 72, 0, 3)]
    )
    assert main(["doctor", "--slots"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("rows_both")]
    assert [line[3] for line in lines] == ["sm_80", "sm_90", "sm_100", "sm_120"]
    assert lines[0][:3] + lines[0][4:8] == ["rows_both", "bf16", "logp,lse", "slots", "204.8", "MUFU", "16.0"]


def test_without_nvdisasm_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_prefuse, "cuda_nvrtc", lambda: ("libnvrtc.so", "13.2", [80, 90]))
    monkeypatch.setattr(slots, "disassembler", lambda: None)
    assert main(["doctor", "--slots"]) == 1
    assert "nothing counted: nvdisasm was not found: pip install nvidia-cuda-nvdisasm" in capsys.readouterr().out
