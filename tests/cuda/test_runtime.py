"""CUDA without a GPU: what is missing is one sentence, the cache is private, looking breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.dlpack import to_dlpack as capsule

from prefuse import _prefuse
from prefuse.__main__ import main
from prefuse._backends import cuda as backend
from prefuse._backends.rows import Rows, bits_of
from prefuse.doctor import examination as doctor

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def _in_a_new_process(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


@without_gpu
def test_a_missing_driver_is_one_sentence() -> None:
    for call in (
        _prefuse.cuda_driver_version,
        _prefuse.cuda_devices,
        lambda: _prefuse.cuda_segment_sum(*map(capsule, (torch.ones(4), torch.arange(5), torch.ones(4))), 0, 0),
        lambda: _prefuse.cuda_rows_workspace(("f32", (4, 8), (8, 1)), None, bits_of(["logp"]), 0),
    ):
        with pytest.raises(RuntimeError, match=r"driver") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_missing_nvrtc_is_one_sentence() -> None:
    program = (
        "from prefuse import _prefuse\n"
        "_prefuse.cuda_search_nvrtc(['/nowhere/libnvrtc.so.13'])\n"
        "try: _prefuse.cuda_nvrtc()\n"
        "except RuntimeError as error: print(error)\n"
    )
    said = _in_a_new_process(program)
    assert said.startswith("NVRTC, CUDA's run-time compiler, was not found: install") and said.count("\n") == 1


def test_importing_opens_nothing() -> None:
    program = (
        "import prefuse.functional, prefuse._backends.cuda\n"
        "maps = open('/proc/self/maps').read() if __import__('os').path.exists('/proc/self/maps') else ''\n"
        "print('libnvrtc' in maps)\n"
    )
    import_alone = "import torch\nprint('libnvrtc' in open('/proc/self/maps').read())\n"
    if sys.platform == "linux":
        assert _in_a_new_process(program) == _in_a_new_process(import_alone)


@pytest.mark.needs("nvrtc")
class TestCache:
    SUM = ("segment_sum", [("VALUE", "f32")], 90, True)

    def test_a_kernel_is_compiled_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path / "kernels"))
        cubin, _ = _prefuse.cuda_compile(*self.SUM)
        (file,) = (tmp_path / "kernels").iterdir()
        written = file.stat().st_mtime_ns
        assert _prefuse.cuda_compile(*self.SUM)[0] == cubin and file.stat().st_mtime_ns == written
        assert file.name.startswith("segment_sum-")

    def test_the_key_tells_programs_architectures_and_constants_apart(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path))
        tmp_path.chmod(0o700)
        for kernel in ("segment_sum", "segment_expand"):
            for dtype in ("f32", "f64"):
                for architecture in (80, 90):
                    _prefuse.cuda_compile(kernel, [("VALUE", dtype)], architecture, True)
        assert len(list(tmp_path.iterdir())) == 8

    @pytest.mark.parametrize("damage", [b"", b"short", bytes(5000)])
    def test_a_damaged_file_costs_a_compilation(
        self, damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path / "kernels"))
        cubin, _ = _prefuse.cuda_compile(*self.SUM)
        (file,) = (tmp_path / "kernels").iterdir()
        whole = file.read_bytes()
        file.write_bytes(damage)
        assert _prefuse.cuda_compile(*self.SUM)[0] == cubin
        assert file.read_bytes() == whole

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
    def test_a_directory_that_others_can_write_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path))
        tmp_path.chmod(0o777)
        assert _prefuse.cuda_compile(*self.SUM)[0]
        assert not list(tmp_path.iterdir())
        with pytest.raises(RuntimeError, match="can be written by others"):
            _prefuse.cuda_cache_directory()

    def test_no_directory_costs_a_compilation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path / "file" / "kernels"))
        assert _prefuse.cuda_compile(*self.SUM)[0]


def _rows(**fields: object) -> Rows:
    labels = torch.tensor([[0, 4], [2, 9]])
    defaults = {"mask": None, "reference": None, "temperatures": None, "temperature": 1.0, "scale": 1.0, "softcap": 0.0}
    return Rows(
        **{
            "logits": torch.zeros(2, 2, 5),
            "labels": labels,
            **defaults,
            "ignore_index": 9,
            "stats": bits_of(["logp"]),
            "k": 10,
            **fields,
        }
    )


def test_debugging_looks_at_the_values() -> None:
    backend.check_values(_rows())
    backend.check_values(_rows(ignore_index=-1, mask=torch.tensor([[True, True], [True, False]])))
    with pytest.raises(ValueError, match=r"^labels: 9 at \[1, 1\], expected 0 <= label < 5 .* ignore_index = -1"):
        backend.check_values(_rows(ignore_index=-1))
    with pytest.raises(ValueError, match=r"^temperature: 0.0 at \[0, 1\], expected a finite number > 0"):
        backend.check_values(_rows(temperatures=torch.tensor([[1.0, 0.0], [1.0, torch.nan]])))


def test_the_doctor_always_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for part in ("CPU", "PyTorch", "driver", "GPU", "NVRTC", "kernel cache"):
        assert part in said


def test_the_doctor_advises_where_nothing_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise RuntimeError("it is missing: install it")

    for question in ("cuda_driver_version", "cuda_devices", "cuda_nvrtc", "cuda_cache_directory"):
        monkeypatch.setattr(doctor._prefuse, question, missing)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("it is missing: install it") == 3
