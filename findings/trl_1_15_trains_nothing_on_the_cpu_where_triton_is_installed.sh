#!/usr/bin/env bash
# trl 1.15.0 (torch 2.15.0, transformers 5.24.0): SFTTrainer (and DPO, KTO, GRPO, RLOO) cannot train on the CPU of a
# machine where Triton is installed, as it is with torch's wheel from PyPI on Linux.
#
# Expected: a loss, as with 1.14.1 before and 1.16.0 after it; `use_cpu=True` is an option of its configuration.
# What happens: the fused head of 1.15.0 takes its Triton kernel wherever Triton can be imported, without a look at the
# device of the tensors, and Triton has no driver for a CPU. 1.16.0 has the same head in torch operations for devices
# that Triton does not know.
#
# Seen:
#   trl 1.14.1: trained
#   trl 1.15.0: RuntimeError 0 active drivers ([]). There should only be one.
#   trl 1.16.0: trained
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install trl==1.16.0 torch==2.15.0 transformers==5.24.0 numpy
cat > "$folder/script.py" <<'PYTHON'
import sys
import warnings

import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "a", "b", "c", "d"])}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
)
args = trl.SFTConfig(sys.argv[1], use_cpu=True, bf16=False, max_steps=1, report_to=[], save_strategy="no", disable_tqdm=True)
data = Dataset.from_dict({"text": ["a b c", "b c d"] * 8})
trainer = trl.SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
trainer.remove_callback(PrinterCallback)
try:
    trainer.train()
    result = "trained"
except Exception as error:
    result = f"{type(error).__name__} {error}"
print(f"trl {trl.__version__}: {result}")
PYTHON
run() { "$folder/env/bin/python" "$folder/script.py" "$folder/out" 2>/dev/null | grep '^trl '; }
found=$(for version in 1.14.1 1.15.0 1.16.0; do install --no-deps "trl==$version"; run; done)
echo "$found"
[ "$found" = "trl 1.14.1: trained
trl 1.15.0: RuntimeError 0 active drivers ([]). There should only be one.
trl 1.16.0: trained" ]
