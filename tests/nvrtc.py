"""NVRTC by its own interface, for what the extension does not offer: PTX, and several entry points as one program."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from prefuse import _prefuse
from prefuse._backends.nvrtc import prepare

OPTIONS = ("--std=c++17", "--fmad=false", "--diag-suppress=177")
"""Those of the extension, for machine code and for PTX."""


class Made(NamedTuple):
    """What NVRTC made, machine code or PTX, and what it said."""

    output: bytes
    log: str


def machine_code(sources: Sequence[tuple[str, str]], architecture: int) -> Made:
    """Machine code with the extension's options; `sources` are (name, text) of headers, the program's own last."""
    options = (*OPTIONS, "--ptxas-options=-v", f"--gpu-architecture=sm_{architecture}")
    return _compiled(sources, options, "CUBIN")


def ptx(sources: Sequence[tuple[str, str]], defines: Sequence[tuple[str, str]], architecture: int) -> str:
    """PTX of the same, with these constants."""
    definitions = [f"-D{key}={value}" for key, value in defines]
    options = (*OPTIONS, f"--gpu-architecture=compute_{architecture}", *definitions)
    return _compiled(sources, options, "PTX").output.rstrip(b"\0").decode()


def _compiled(sources: Sequence[tuple[str, str]], options: Sequence[str], output: str) -> Made:
    prepare()
    nvrtc = ctypes.CDLL(_prefuse.cuda_nvrtc()[0])
    *headers, (name, text) = sources
    handle = ctypes.c_void_p()
    texts, names = _strings([text for _, text in headers]), _strings([name for name, _ in headers])
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(handle), text.encode(), name.encode(), len(headers), texts, names)
    assert created == 0
    try:
        status = nvrtc.nvrtcCompileProgram(handle, len(options), _strings(options))
        log = _read(nvrtc, handle, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise RuntimeError(log)
        return Made(_read(nvrtc, handle, output), log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(handle))


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _read(nvrtc: ctypes.CDLL, handle: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert nvrtc[f"nvrtcGet{what}Size"](handle, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert nvrtc[f"nvrtcGet{what}"](handle, buffer) == 0
    return buffer.raw
