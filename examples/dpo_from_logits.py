"""DPO on a `transformers` model in a hand-written loop: the model's logits go to prefuse, and nothing else changes.

    python examples/dpo_from_logits.py

The model is a random Llama of a few thousand weights and the pairs are random tokens, so that it runs anywhere in
seconds; with a real model and tokenizer the loop stays as it is.
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prefuse

PAIRS, PROMPT, LENGTH, VOCABULARY = 8, 4, 12, 64


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)

    tokens = torch.randint(VOCABULARY, (2 * PAIRS, LENGTH))  # rows: all chosen sequences, then all rejected ones
    tokens[PAIRS:, :PROMPT] = tokens[:PAIRS, :PROMPT]  # both answer the same prompt
    labels = tokens.clone()
    labels[:, :PROMPT] = -100  # the prompt is not scored

    losses = []
    for step in range(steps):
        with torch.no_grad():
            reference_logits = reference(input_ids=tokens).logits
        score = prefuse.preference_loss(
            "dpo",
            logits=policy(input_ids=tokens).logits,
            labels=labels,
            reference=reference_logits,
            shift=True,  # labels are aligned with the tokens, as Hugging Face models take them
            inplace=True,  # nobody reads these logits again: their gradient may take their place
            beta=0.1,
        )
        optimizer.zero_grad()
        score.loss.backward()
        optimizer.step()
        losses.append(score.loss.item())
        if step % 10 == 0 or step == steps - 1:
            metrics = score.metrics
            print(
                f"step {step:3d}  loss {losses[-1]:.4f}  accuracy {metrics['rewards/accuracies']:.2f}  "
                f"margin {metrics['rewards/margins']:.3f}"
            )
    return losses


if __name__ == "__main__":
    main()
