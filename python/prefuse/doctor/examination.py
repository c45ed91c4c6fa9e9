"""`python -m prefuse doctor`: what prefuse finds on this machine, and what to do where something is missing.

Works without a GPU, a driver or NVRTC. `--compile` compiles every kernel for every supported architecture (for which
NVRTC is enough) and prints registers, spilled bytes and shared memory: see `prefuse.doctor.compile_all`. `--slots`
counts the instructions of their main loops: see `prefuse.doctor.slots`. `--warm sm_90` fills the cache for machines
elsewhere: see `prefuse.doctor.warm`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

import torch

import prefuse._prefuse as _prefuse
from prefuse._backends.nvrtc import ARCHITECTURES, nvrtc_candidates, prepare
from prefuse._display.html import bold, table
from prefuse.doctor.compile_all import compile_all
from prefuse.doctor.slots import count_all
from prefuse.doctor.warm import architecture_of, warm
from prefuse.integrations import llamafactory, swift
from prefuse.integrations._places import Framework
from prefuse.integrations.megatron import MEGATRON
from prefuse.integrations.nemo_rl import NEMO_RL
from prefuse.integrations.openrlhf import OPENRLHF
from prefuse.integrations.verl import VERL


class Finding(NamedTuple):
    """One line of the table; `advice` is empty where nothing is to be done."""

    part: str
    state: str
    advice: str = ""


class Library(NamedTuple):
    """A library that prefuse works with where it is installed.

    Attributes:
        name: of its distribution.
        integration: what of prefuse works with it.
        problem: from its version, why that does not fit; empty where it does. Of a library that may fit in part: what
            fits, and the problem of the rest.
    """

    name: str
    integration: str
    problem: Callable[[str], str | tuple[str, str]]


def _at_least(oldest: str) -> Callable[[str], str]:
    return lambda version: "" if _numbers(version) >= _numbers(oldest) else f"needs {oldest} or later"


def _as_of(followed: str) -> Callable[[str], str]:
    return lambda version: (
        "" if version == followed else f"follows {followed}; what another version computes may have changed"
    )


def _trl_fits(_: str) -> tuple[str, str]:
    from prefuse.trl import compatibility  # which imports all of TRL

    return compatibility.fit()


def _tried_with(framework: Framework) -> Callable[[str], str]:
    tried = ", ".join(framework.tried)
    return lambda version: (
        "" if version in framework.tried else f"tried with {tried}; accelerate() looks whether this one fits"
    )


def _framework(fit: Callable[[], str]) -> Callable[[str], str]:
    return lambda _: fit()


LIBRARIES = (
    Library("transformers", "prefuse.head", _at_least("4.56")),
    Library("peft", "prefuse.head", _at_least("0.13")),
    Library("accelerate", "prefuse.head", _at_least("1.10")),
    Library("trl", "prefuse.trl", _trl_fits),
    Library("datasets", "prefuse.trl", _at_least("4.7")),
    Library("liger-kernel", "prefuse.compat.liger", _as_of("0.8.5")),
    *(
        Library(framework.name, f"prefuse.integrations.{framework.module}", _tried_with(framework))
        for framework in (MEGATRON, NEMO_RL, OPENRLHF, VERL)
    ),
    Library("llamafactory", "prefuse.integrations.llamafactory", _framework(llamafactory.fit)),
    Library("ms-swift", "prefuse.integrations.swift", _framework(swift.fit)),
)


def findings() -> list[Finding]:
    """Everything that decides what prefuse can do here."""
    prepare()
    return [_processor(), _torch(), _driver(), *_devices(), *_nvrtc(), _cache(), *map(_library, LIBRARIES)]


@dataclass(frozen=True, repr=False)
class Report:
    """All findings; prints as a table and, below it, what to do."""

    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        states = _table([("part", "state"), *((finding.part, finding.state) for finding in self.findings)])
        return "\n\n".join(
            [states, *(f"{finding.part}: {finding.advice}" for finding in self.findings if finding.advice)]
        )

    def _repr_html_(self) -> str:
        rows = [(bold(part) if advice else part, state, advice) for part, state, advice in self.findings]
        return table(rows, ("part", "state", "what to do"))


def report() -> Report:
    """What prefuse finds on this machine; a notebook shows it as a table."""
    return Report(tuple(findings()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the doctor's options."""
    parser.add_argument("--compile", action="store_true", help="compile every kernel for every supported architecture")
    parser.add_argument("--detail", action="store_true", help="with --compile: a line per kernel and architecture")
    parser.add_argument(
        "--warm",
        metavar="SM",
        type=_architecture,
        help="compile likely kernels into the cache for one architecture: sm_90",
    )
    parser.add_argument(
        "--slots", action="store_true", help="count the instructions of the kernels' main loops (takes nvdisasm)"
    )


def _architecture(name: str) -> int:
    try:
        return architecture_of(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(options: argparse.Namespace) -> int:
    """Prints the table; returns the exit status: 1 if a kernel does not compile or cannot be counted, else 0."""
    print(report())
    status = warm(options.warm) if options.warm else compile_all(options.detail) if options.compile else 0
    return max(status, count_all()) if options.slots else status


def _processor() -> Finding:
    threads = torch.get_num_threads()
    return Finding("CPU", f"{platform.machine()}, {_prefuse.simd_level()}, {threads} threads as PyTorch is set")


def _torch() -> Finding:
    cuda = torch.version.cuda
    state = f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    advice = "" if cuda else "CUDA tensors need a CUDA build of PyTorch: https://pytorch.org/get-started"
    return Finding("PyTorch", state, advice)


def _driver() -> Finding:
    return _asked("driver", lambda: f"supports CUDA {_dotted(_prefuse.cuda_driver_version(), 1000, 10)}")


def _devices() -> list[Finding]:
    try:
        devices = _prefuse.cuda_devices()
    except RuntimeError:
        return [Finding("GPU", "none seen without a driver that can be used")]
    if not devices:
        return [
            Finding(
                "GPU", "none", "the driver is there but shows no device: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        ]
    return [
        Finding(
            f"GPU {number}",
            f"{name}, compute capability {_dotted(capability, 10, 1)}, {count} multiprocessors",
            _too_old(capability),
        )
        for number, (name, capability, count) in enumerate(devices)
    ]


def _too_old(capability: int) -> str:
    oldest = ARCHITECTURES[0]
    return (
        ""
        if capability >= oldest
        else f"the kernels need compute capability {_dotted(oldest, 10, 1)} or later; use CPU tensors"
    )


def _nvrtc() -> list[Finding]:
    try:
        path, version, architectures = _prefuse.cuda_nvrtc()
    except RuntimeError as error:
        return [Finding("NVRTC", "not found", f"{error}; searched: {', '.join(nvrtc_candidates())}")]
    return [Finding("NVRTC", f"{version}, sm_{min(architectures)} to sm_{max(architectures)}, {path}")]


def _cache() -> Finding:
    try:
        directory = _prefuse.cuda_cache_directory()
    except RuntimeError as error:
        return Finding("kernel cache", "not used", f"{error}; each process compiles anew. PREFUSE_CACHE_DIR moves it")
    files = [entry for entry in os.scandir(directory) if entry.name.endswith(".cubin")]
    size = sum(entry.stat().st_size for entry in files)
    return Finding("kernel cache", f"{directory}, {len(files)} kernels, {size / 1e6:.1f} MB")


def _library(library: Library) -> Finding:
    try:
        version = metadata.version(library.name)
    except metadata.PackageNotFoundError:
        return Finding(library.name, "not installed")
    problem = library.problem(version)
    fits, problem = problem if isinstance(problem, tuple) else ("", problem)
    verdict = f"fits {fits}" if fits and problem else "does not fit" if problem else "fits"
    state = f"{version}, {library.integration} {verdict}"
    return Finding(library.name, state, f"{library.integration}: {problem}" if problem else "")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _asked(part: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(part, question())
    except RuntimeError as error:
        text = str(error)
        state = next((state for state in ("not found", "too old", "a toolkit's stub") if state in text), "not usable")
        return Finding(part, state, text)


def _dotted(number: int, unit: int, minor: int) -> str:
    return f"{number // unit}.{number % unit // minor}"


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(part) for part, _ in rows)
    return "\n".join(f"{part:<{width}}  {state}" for part, state in rows)
