"""The blocks that name models and data sets of the hub (```py) run as they are: beside local ones of these names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.test_code_blocks import PAGES, blocks

pytest.importorskip("trl")

TEMPLATE = "{% for m in messages %} {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", *(f"w{number}" for number in range(40))]


def model_in(folder: Path) -> None:
    """A small model with its tokenizer and chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, pad_token_id=0, eos_token_id=2)).save_pretrained(folder)


def pairs_in(folder: Path) -> None:
    """Conversations with a better and a worse answer, in the columns of the data set that is named."""
    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w") as file:
        for row in range(200):
            ask = {"role": "user", "content": f"w{row % 40} w{row % 7}"}
            said = {
                name: [ask, {"role": "assistant", "content": f"w{(row * k) % 40} w{row % 11}"}]
                for k, name in ((3, "chosen"), (5, "rejected"))
            }
            file.write(json.dumps({**said, "score_chosen": 8.0, "score_rejected": 6.0}) + "\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "py")], ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets
    from transformers import training_args

    import prefuse.trl

    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)  # as the blocks take it to be

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model_in(tmp_path / "Qwen" / "Qwen3-0.6B")
    pairs_in(tmp_path / "trl-lib" / "ultrafeedback_binarized")
    rows = datasets.load_dataset("trl-lib/ultrafeedback_binarized", split="train[:1%]")
    names: dict[str, Any] = {"__name__": "__main__", "pairs": rows}
    handles = []
    accelerate = prefuse.trl.accelerate
    monkeypatch.setattr(prefuse.trl, "accelerate", lambda *a, **k: handles.append(accelerate(*a, **k)) or handles[-1])
    try:
        for line, code in blocks(page, "py"):
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    finally:
        for handle in handles:
            handle.remove()
    trained = names["trainer"].state.log_history
    assert os.path.isdir("out") or not trained
    assert "trainer.train()" not in blocks(page, "py")[-1][1] or trained
