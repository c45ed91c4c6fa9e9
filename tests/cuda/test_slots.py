"""How instructions of main loops are counted; `test_compile.py` bounds those of the kernels."""

from __future__ import annotations

import pytest

from prefuse import _prefuse
from prefuse.__main__ import main
from prefuse.doctor import slots
from prefuse.doctor.machine_code import Loop, loops
from prefuse.doctor.slots import Counted, main_loops

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
