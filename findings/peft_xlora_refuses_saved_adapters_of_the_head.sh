#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.24.0, torch 2.15.0): X-LoRA does not load LoRA adapters of lm_head that PEFT has saved.
#
# Expected: adapters written by save_pretrained are named in XLoraConfig(adapters=...) and loaded, whichever modules they
# are of; PeftModel.from_pretrained loads those of the head.
# What happens: with an adapter of the head save_pretrained writes the head's own weight into the file, too
# (save_embedding_layers="auto"), and X-LoRA's loader refuses the file for that key.
#
# Seen:
#   q_proj by itself: loaded
#   q_proj in X-LoRA: loaded
#   lm_head by itself: loaded
#   lm_head in X-LoRA: ValueError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install torch==2.15.0 numpy transformers==5.24.0 peft==0.21.2
cat > "$folder/script.py" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=31, use_cache=False, **sizes))


for module in ("q_proj", "lm_head"):
    folders = [f"{sys.argv[1]}/{module}-{number}" for number in range(2)]
    for saved in folders:
        get_peft_model(model(), LoraConfig(r=2, target_modules=[module], task_type="CAUSAL_LM")).save_pretrained(saved)

    def by_itself():
        PeftModel.from_pretrained(model(), folders[0])

    def in_xlora():
        adapters = {str(number): saved for number, saved in enumerate(folders)}
        get_peft_model(model(), XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, adapters=adapters))

    for name, load in (("by itself", by_itself), ("in X-LoRA", in_xlora)):
        try:
            load()
            result = "loaded"
        except Exception as error:
            result = type(error).__name__
            print(error, file=sys.stderr)
        print(f"{module} {name}: {result}")
PYTHON
found=$("$folder/env/bin/python" "$folder/script.py" "$folder" 2>/dev/null)
echo "$found"
[ "$found" = "q_proj by itself: loaded
q_proj in X-LoRA: loaded
lm_head by itself: loaded
lm_head in X-LoRA: ValueError" ]
