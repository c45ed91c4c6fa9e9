"""Every prompt computed once in a hand-written loop: groups of responses with rewards, packed by `prefuse.packing`.

    python examples/shared_prompts.py

Each step packs three prompts with four responses each into one row, in which every prompt stands once. Where rows are
padded tensors already, ``prefuse.head(model, share_prompts=True)`` does the same and the loop stays as it is. The model
is a random Llama of a few thousand weights and the data are random tokens, so that it runs anywhere in seconds.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prefuse
from prefuse.packing import pack, tree_attention

PROMPTS, RESPONSES, PROMPT, RESPONSE, VOCABULARY = 3, 4, 48, 8, 64


def main(steps: int = 30) -> tuple[list[float], float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    # One prompt per response: those that are equal are found.
    prompts = torch.randint(VOCABULARY, (PROMPTS, PROMPT)).repeat_interleave(RESPONSES, 0)
    responses = torch.randint(VOCABULARY, (PROMPTS * RESPONSES, RESPONSE))
    groups = torch.arange(PROMPTS).repeat_interleave(RESPONSES)
    rewards = torch.rand(len(groups))

    losses = []
    with tree_attention():
        for _ in range(steps):
            batch = pack(list(prompts), list(responses))
            hidden = model.model(**batch.model_inputs()).last_hidden_state  # [1, N, H]
            score = prefuse.preference_loss(
                "lipo",
                hidden=batch.response_hidden(hidden),  # the last of a prompt once for each of its responses
                weight=model.lm_head.weight,
                labels=batch.labels,
                cu_seqlens=batch.cu_seqlens,
                groups=groups,
                label=rewards,
                reference=torch.zeros(len(groups)),
            )
            optimizer.zero_grad()
            score.loss.backward()
            optimizer.step()
            losses.append(score.loss.item())
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {batch.spared} of {batch.given} tokens spared in every step")
    return losses, batch.spared / batch.given


if __name__ == "__main__":
    main()
