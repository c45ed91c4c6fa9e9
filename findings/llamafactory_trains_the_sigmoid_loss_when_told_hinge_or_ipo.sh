#!/usr/bin/env bash
# LLaMA-Factory 0.9.5 with trl 0.24.0 (transformers 4.57.6, torch 2.15.0): pref_loss hinge and ipo train the sigmoid loss.
#
# Expected: before the first step the policy is the reference, so the log-ratios of a pair are 0 and the loss is 1 for
# hinge, max(0, 1 - 0), and 25 for ipo with pref_beta 0.1, (0 - 1/(2*0.1))^2. The documentation offers both values.
# What happens: LLaMA-Factory calls TRL's dpo_loss with the four log-probabilities only. Since that method takes the
# loss's name as an argument whose default is "sigmoid", the name in the configuration is no longer read: the logged loss
# is log 2 for every one of them, and so is the gradient. kto_pair, which this TRL has not, raises no error either.
#
# Seen:
#   sigmoid: loss of the first step 0.6931
#   hinge: loss of the first step 0.6931
#   ipo: loss of the first step 0.6931
#   kto_pair: loss of the first step 0.6931
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install torch==2.15.0 numpy setuptools accelerate==1.11.0 av==16.0.0 datasets==4.0.0 einops==0.8.2 fastapi==0.165.0 \
    fire==0.7.1 hf_transfer==0.1.9 modelscope==1.40.2 omegaconf==2.4.0 pandas peft==0.18.1 protobuf==7.36.2 \
    scipy==1.17.1 sentencepiece==0.2.3 sse-starlette==3.7.0 tiktoken==0.14.0 transformers==4.57.6 tyro==0.8.14 \
    uvicorn==0.54.0 trl==0.24.0 pyyaml
# Without its declared dependencies, among which are video and web packages that nothing here uses.
install --no-deps llamafactory==0.9.5 torchaudio==2.11.1
cat > "$folder/script.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = Path(sys.argv[1])
words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"])}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
).save_pretrained(folder / "model")
config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LlamaForCausalLM(config).save_pretrained(folder / "model")
row = {"instruction": "a b", "input": "", "chosen": "c d", "rejected": "e f"}
(folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
described = {"pairs": {"file_name": "pairs.jsonl", "ranking": True, "columns": columns}}
(folder / "dataset_info.json").write_text(json.dumps(described))

from llamafactory.train.tuner import run_exp

for name in ("sigmoid", "hinge", "ipo", "kto_pair"):
    run_exp(
        {
            "model_name_or_path": str(folder / "model"),
            "dataset_dir": str(folder),
            "dataset": "pairs",
            "template": "default",
            "output_dir": str(folder / name),
            "stage": "dpo",
            "pref_loss": name,
            "pref_beta": 0.1,
            "do_train": True,
            "finetuning_type": "full",
            "per_device_train_batch_size": 2,
            "max_steps": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        }
    )
    first = json.loads((folder / name / "trainer_log.jsonl").read_text().splitlines()[0])
    print(f"{name}: loss of the first step {first['loss']:.4f}")
PYTHON
found=$("$folder/env/bin/python" "$folder/script.py" "$folder" 2>/dev/null | grep 'loss of the first step')
echo "$found"
[ "$found" = "sigmoid: loss of the first step 0.6931
hinge: loss of the first step 0.6931
ipo: loss of the first step 0.6931
kto_pair: loss of the first step 0.6931" ]
