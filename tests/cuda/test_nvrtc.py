"""An NVRTC that does not find its library of built-in functions by itself, and one whose fault is in its log alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.emulator import COMPILER

pytestmark = [
    pytest.mark.needs("compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are made for Linux"),
]

BUILTINS = "libnvrtc-builtins.so.13.0"
NVRTC = f"""
#include <cstddef>
#include <cstring>
#include <dlfcn.h>
static const char said[] = "failed to open {BUILTINS}";
extern "C" {{
int nvrtcVersion(int* major, int* minor) {{ *major = 13, *minor = 0; return 0; }}
int nvrtcGetNumSupportedArchs(int* number) {{ *number = 1; return 0; }}
int nvrtcGetSupportedArchs(int* list) {{ list[0] = 90; return 0; }}
int nvrtcCreateProgram(...) {{ return 0; }}
int nvrtcCompileProgram(...) {{ return dlopen("{BUILTINS}", RTLD_LAZY) ? 0 : 7; }}
int nvrtcGetProgramLogSize(void*, size_t* size) {{ *size = sizeof said; return 0; }}
int nvrtcGetProgramLog(void*, char* log) {{ memcpy(log, said, sizeof said); return 0; }}
int nvrtcGetCUBINSize(void*, size_t* size) {{ *size = 4; return 0; }}
int nvrtcGetCUBIN(void*, char* cubin) {{ memcpy(cubin, "code", 4); return 0; }}
int nvrtcDestroyProgram(...) {{ return 0; }}
const char* nvrtcGetErrorString(int) {{ return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE"; }}
}}
"""


def library(path: Path, text: str, *options: str) -> Path:
    """A shared library of this C++ text."""
    source = path.parent / f"{path.name}.cpp"
    source.write_text(text)
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(path), str(source), *options], check=True)
    return path


def compiled(nvrtc: Path) -> str:
    """What a process says that compiles a kernel with this library."""
    code = (
        "from prefuse import _prefuse\n"
        f"_prefuse.cuda_search_nvrtc([{str(nvrtc)!r}])\n"
        "try: print(_prefuse.cuda_compile('segment_sum', [('VALUE', 'f32')], 90, False)[0])\n"
        "except RuntimeError as error: print(error)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_built_in_functions_are_found_in_the_folder_of_nvrtc(tmp_path: Path) -> None:
    nvrtc = library(tmp_path / "libnvrtc.so.13", NVRTC, "-ldl")
    library(tmp_path / BUILTINS, "", f"-Wl,-soname,{BUILTINS}")
    assert compiled(nvrtc) == "b'code'"


def test_the_log_says_what_the_compiler_lacks(tmp_path: Path) -> None:
    nvrtc = library(tmp_path / "libnvrtc.so.13", NVRTC, "-ldl")
    said = compiled(nvrtc)
    assert said == f"NVRTC ({nvrtc}): NVRTC_ERROR_BUILTIN_OPERATION_FAILURE\nfailed to open {BUILTINS}"
