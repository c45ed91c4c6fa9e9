#!/usr/bin/env bash
# trl 1.8.0 (datasets 5.2.0, transformers 5.24.0, torch 2.15.0): DPOTrainer with precompute_ref_log_probs=True fails on a
# data set in memory, and works on the same rows out of a folder.
#
# Expected: the reference's log-probabilities are computed and training begins, as with trl 1.16.0 and as the option says;
# nothing in it speaks of where the data set lies.
# What happens: the trainer asks `datasets` for the name of a cache file, lets it compute the new columns, and opens that
# file. For rows without files of their own the name is drawn anew at every call, and `map` keeps its result in memory.
# The error names a file of which the user has never heard.
#
# Seen:
#   trl 1.8.0, data set in memory: FileNotFoundError
#   trl 1.8.0, data set from a folder: trained
#   trl 1.16.0, data set in memory: trained
#   trl 1.16.0, data set from a folder: trained
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install trl==1.16.0 torch==2.15.0 transformers==5.24.0 datasets==5.2.0 numpy
cat > "$folder/script.py" <<'PYTHON'
import sys
import warnings

import transformers
import trl
from datasets import Dataset, load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "a", "b", "c", "d"])}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
LlamaForCausalLM(config).save_pretrained(f"{sys.argv[1]}/model")
in_memory = Dataset.from_dict({"prompt": ["a b"] * 8, "chosen": [" c"] * 8, "rejected": [" d"] * 8})
in_memory.save_to_disk(f"{sys.argv[1]}/data")
for name, data in (("in memory", in_memory), ("from a folder", load_from_disk(f"{sys.argv[1]}/data"))):
    args = trl.DPOConfig(
        f"{sys.argv[1]}/out",
        use_cpu=True,
        bf16=False,
        max_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        precompute_ref_log_probs=True,
    )
    model = LlamaForCausalLM.from_pretrained(f"{sys.argv[1]}/model")
    try:
        trl.DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer).train()
        result = "trained"
    except Exception as error:
        result = type(error).__name__
    print(f"trl {trl.__version__}, data set {name}: {result}")
PYTHON
run() { "$folder/env/bin/python" "$folder/script.py" "$folder/run-$1" 2>/dev/null | grep '^trl '; }
found=$(for version in 1.8.0 1.16.0; do install --no-deps "trl==$version"; run "$version"; done)
echo "$found"
[ "$found" = "trl 1.8.0, data set in memory: FileNotFoundError
trl 1.8.0, data set from a folder: trained
trl 1.16.0, data set in memory: trained
trl 1.16.0, data set from a folder: trained" ]
