#!/usr/bin/env bash
# trl 1.16.0: DPOTrainer does not take rows that have their prompt as text beside messages that begin with it, and which
# error says so depends on the seed of Python's hashes.
#
# Expected: rows as ultrafeedback_binarized has them (`prompt` a string; `chosen` and `rejected` lists of messages that
# both begin with the prompt as a user's message) are trained on. `trl.data_utils.maybe_extract_prompt` names this format
# in its documentation and takes the prompt out of the messages.
# What happens: the trainer takes a prompt out of the messages only where there is no column `prompt`, and then looks at
# one column, whichever comes first in a set, to tell text from messages. If that is `prompt`, the rest of a row is taken
# for text; if it is another, the prompt is taken for messages.
#
# Seen, over the seeds 0 to 5: two different errors, each of them with some seeds; without the column `prompt` none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 trl==1.16.0 numpy
cat > "$folder/train.py" <<'PYTHON'
import sys

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging
from trl import DPOConfig, DPOTrainer

logging.set_verbosity_error()
disable_progress_bars()
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "b", "c"])}, "<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
config = dict(vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
asked = {"role": "user", "content": "a b"}
row = {
    "prompt": "a b",
    "chosen": [asked, {"role": "assistant", "content": "c"}],
    "rejected": [asked, {"role": "assistant", "content": "b"}],
}
if sys.argv[2] == "without":
    del row["prompt"]
options = DPOConfig(sys.argv[1], use_cpu=True, bf16=False, report_to=[])
try:
    DPOTrainer(
        LlamaForCausalLM(LlamaConfig(**config)),
        ref_model=LlamaForCausalLM(LlamaConfig(**config)),
        args=options,
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=tokenizer,
    )
except (TypeError, AttributeError) as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("no error")
PYTHON
kinds() {
    for seed in 0 1 2 3 4 5; do
        PYTHONHASHSEED=$seed "$folder/env/bin/python" "$folder/train.py" "$folder/out" "$1" 2>/dev/null | tail -n 1
    done | sort | uniq
}
with=$(kinds with)
without=$(kinds without)
echo "$with"
echo "without the column prompt: $without"
[ "$with" = "AttributeError: 'list' object has no attribute 'endswith'
TypeError: can only concatenate str (not \"list\") to str" ]
[ "$without" = "no error" ]
