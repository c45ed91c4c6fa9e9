"""DPO with LoRA in a hand-written loop: the losses come from hidden states, and the logits are never made.

    python examples/hand_written_loop.py

The reference is the same model with its adapters off. The model is a random Llama of a few thousand weights and the
pairs are random tokens, so that it runs anywhere in seconds; with a real model and tokenizer the loop stays as it is.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import prefuse

PAIRS, PROMPT, LENGTH, VOCABULARY = 8, 4, 12, 64


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    tokens = torch.randint(VOCABULARY, (2 * PAIRS, LENGTH))  # rows: all chosen sequences, then all rejected ones
    tokens[PAIRS:, :PROMPT] = tokens[:PAIRS, :PROMPT]  # both answer the same prompt
    labels = tokens.clone()
    labels[:, :PROMPT] = -100  # the prompt is not scored
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    losses = []
    with prefuse.head(model) as head:
        with torch.no_grad(), model.disable_adapter():
            reference = head.sequence_logps(labels, inputs=inputs)
        for step in range(steps):
            score = head.preference_loss("dpo", labels=labels, inputs=inputs, reference=reference, beta=0.1)
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
