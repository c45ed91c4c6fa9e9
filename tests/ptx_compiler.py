"""NVIDIA's compiler of PTX as a library: the second half of NVRTC, for one PTX and several architectures.

The package `nvidia-nvptxcompiler` has it as a static library, which is linked into a shared one here.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

from prefuse import _prefuse
from prefuse._backends.nvrtc import prepare
from tests import nvrtc
from tests.emulator.emulator import COMPILER


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiler, or nothing where there is none of NVRTC's own version, which alone makes the same code."""
    prepare()
    path, version, _ = _prefuse.cuda_nvrtc()
    archive = Path(path).with_name("libnvptxcompiler_static.a")
    if not COMPILER or not archive.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / "ptx_compiler.so"
        whole = ("-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive")
        subprocess.run([COMPILER, "-shared", *whole, "-lpthread", "-o", str(linked)], check=True)
        found = ctypes.CDLL(str(linked))
    return found if _version(found) == version else None


def machine_code(ptx: str, architecture: int) -> nvrtc.Made:
    """What NVRTC makes of the source that it made this PTX of."""
    compiler = library()
    assert compiler
    handle, text = ctypes.c_void_p(), ptx.encode()
    assert compiler.nvPTXCompilerCreate(ctypes.byref(handle), ctypes.c_size_t(len(text)), text) == 0
    try:
        options = (ctypes.c_char_p * 2)(b"-v", f"-arch=sm_{architecture}".encode())
        if compiler.nvPTXCompilerCompile(handle, len(options), options):
            raise RuntimeError(_read(compiler, handle, "ErrorLog").decode())
        return nvrtc.Made(_read(compiler, handle, "CompiledProgram"), _read(compiler, handle, "InfoLog").decode())
    finally:
        compiler.nvPTXCompilerDestroy(ctypes.byref(handle))


def _version(compiler: ctypes.CDLL) -> str:
    major, minor = ctypes.c_uint(), ctypes.c_uint()
    assert compiler.nvPTXCompilerGetVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return f"{major.value}.{minor.value}"


def _read(compiler: ctypes.CDLL, handle: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert compiler[f"nvPTXCompilerGet{what}Size"](handle, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value + 1)
    assert compiler[f"nvPTXCompilerGet{what}"](handle, buffer) == 0
    return buffer.raw[: size.value]
