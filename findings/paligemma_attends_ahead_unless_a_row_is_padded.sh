#!/usr/bin/env bash
# transformers 5.24.0: PaliGemma with SDPA (its default) on a batch of plain text lets tokens attend to later ones, but
# only while no row of the batch is padded.
#
# Expected: the logits of a row do not depend on whether another row has padding, and those of its first tokens not on
# the tokens after them; eager attention, which is asked for by name, agrees with SDPA.
# What happens: without token types a causal mask is asked for, and mask creation leaves it out where no token is
# padding, since SDPA has a causal mode. That mode is taken from the layer, and the layers of a model whose
# configuration has use_bidirectional_attention (True by default in PaliGemma) say that they are not causal. So the same
# text is scored causally in a padded batch and bidirectionally in an unpadded one.
#
# Seen (largest difference between logits):
#   sdpa: other row padded or not: differs, first six tokens with and without the others: differs
#   eager: other row padded or not: same, first six tokens with and without the others: same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 numpy pillow
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, logging

logging.set_verbosity_error()
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
text = dict(model_type="gemma", vocab_size=96, num_key_value_heads=2, head_dim=8, pad_token_id=0, **sizes)
vision = dict(model_type="siglip_vision_model", image_size=16, patch_size=8, projection_dim=32, **sizes)
config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=95, projection_dim=32)
model = PaliGemmaForConditionalGeneration(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
tokens = torch.randint(4, 90, (2, 12))
whole = torch.ones_like(tokens)
padded = whole.clone()
padded[1, :3] = 0


def logits(ids, mask):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[0]


def told(left, right):
    return "same" if torch.allclose(left, right, atol=1e-4) else "differs"


for name in ("sdpa", "eager"):
    model.set_attn_implementation(name)
    alone = logits(tokens, whole)
    beside = told(alone, logits(tokens, padded))
    begin = told(alone[:6], logits(tokens[:, :6], whole[:, :6]))
    print(f"{name}: other row padded or not: {beside}, first six tokens with and without the others: {begin}")
PYTHON
)
echo "$found"
[ "$found" = "sdpa: other row padded or not: differs, first six tokens with and without the others: differs
eager: other row padded or not: same, first six tokens with and without the others: same" ]
