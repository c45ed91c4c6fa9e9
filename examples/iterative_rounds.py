"""Three rounds of DPO on a language model's own answers: sample, judge, curate, train, refresh the reference.

    python examples/iterative_rounds.py

The model is the demo's: a small Qwen3 that learns to write a docstring from a Python function's name and signature,
first from the standard library's docstrings. Then, three times, it writes several for each of some functions, a rule
says which is better, and DPO trains on the best against the worst, with the model as the round began as the reference.
After each round it is compared with the model before all rounds, on functions it never saw.
"""

import torch
from torch import nn

import prefuse
from prefuse import curate, outer
from prefuse.demo.batches import IGNORED, encode, endless
from prefuse.demo.job import Settings, read
from prefuse.demo.model import small_model
from prefuse.demo.pairs import Documented, make_pairs
from prefuse.demo.tokens import BOS, EOS, PAD, SEP
from prefuse.demo.train import fine_tune

SUPERVISED = 200  # steps
ROUNDS, PROMPTS, ANSWERS, JUDGED = 3, 128, 6, 200
PAIRS, EPOCHS, RATE = 16, 2, 1e-3
OBJECTIVE = prefuse.objectives.rpo(beta=0.1, alpha=1.0)
LONGEST, UNFINISHED = 24, 5.0

Prompt = tuple[int, ...]


def score(prompt: Prompt, answer: Prompt) -> float:
    """The judge's rule: name what the function's name and signature name, do not repeat yourself, come to an end."""
    named = len(set(answer) & set(prompt))
    repeated = len(answer) - len(set(answer))
    return float(named - repeated - UNFINISHED * (answer[-1] != EOS))


@torch.no_grad()
def answers(model: nn.Module, prompts: list[Prompt], count: int) -> list[dict]:
    """So many answers to each prompt, as rows; each ends with the end token, or after `LONGEST` tokens without one."""
    sequences = [[BOS, *prompt, SEP] for prompt in prompts]
    length = max(map(len, sequences))
    tokens = torch.tensor([[PAD] * (length - len(sequence)) + sequence for sequence in sequences])
    out = model.generate(
        tokens,
        attention_mask=(tokens != PAD).long(),
        do_sample=True,
        top_k=0,
        num_return_sequences=count,
        max_new_tokens=LONGEST,
        eos_token_id=EOS,
        pad_token_id=PAD,
        use_cache=True,
    )
    rows = []
    for row, ids in enumerate(out[:, length:].tolist()):
        prompt, answer = prompts[row // count], tuple(ids[: ids.index(EOS) + 1] if EOS in ids else ids)
        rows.append({"prompt": prompt, "response": answer, "score": score(prompt, answer)})
    return rows


def padded(prompts: list[Prompt], responses: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R, T] and labels, which ignore prompts and padding."""
    sequences = [(BOS, *prompt, SEP, *response) for prompt, response in zip(prompts, responses, strict=True)]
    tokens = torch.full((len(sequences), max(map(len, sequences))), PAD)
    labels = torch.full_like(tokens, IGNORED)
    for row, (sequence, response) in enumerate(zip(sequences, responses, strict=True)):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, len(sequence) - len(response) : len(sequence)] = torch.tensor(response)
    return tokens, labels


def train(policy: nn.Module, reference: nn.Module, pairs: list[dict]) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE)
    order = torch.cat([torch.randperm(len(pairs)) for _ in range(EPOCHS)])
    for chunk in order.split(PAIRS):
        rows = [pairs[index] for index in chunk.tolist()]
        tokens, labels = padded(
            2 * [row["prompt"] for row in rows], [row[role] for role in ("chosen", "rejected") for row in rows]
        )
        with torch.no_grad():
            reference_logits = reference(input_ids=tokens).logits
        loss = prefuse.preference_loss(
            OBJECTIVE,
            logits=policy(input_ids=tokens).logits,
            labels=labels,
            reference=reference_logits,
            shift=True,
            inplace=True,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


def scores(model: nn.Module, prompts: list[Prompt]) -> torch.Tensor:
    return torch.tensor([row["score"] for row in answers(model, prompts, 2)])


def win_rate(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How often one of our answers scores higher than theirs to the same prompt, ties half."""
    return ((ours > theirs).double() + 0.5 * (ours == theirs)).mean().item()


def main(seed: int = 0) -> list[float]:
    torch.manual_seed(seed)
    data = read(Settings())
    policy = small_model(len(data.tokenizer), width=64, layers=2, seed=seed)
    batches = endless(data.parts.training, data.tokenizer, size=24, seed=seed, responses=2, renamed=0.25)
    fine_tune(policy, batches, SUPERVISED, 3e-3, lambda step, loss: None)

    def prompts_of(functions: list[Documented]) -> list[Prompt]:
        return list(dict.fromkeys(tuple(pair.prompt) for pair in encode(make_pairs(functions, 0), data.tokenizer)))

    fresh, unseen = iter(prompts_of(data.parts.training)), prompts_of(data.parts.unseen)[:JUDGED]
    start = scores(policy, unseen)

    def step(current: outer.Round) -> float:
        prompts = [next(fresh) for _ in range(PROMPTS)]  # new ones each round
        pairs = curate.best_versus_worst(answers(current.policy, prompts, ANSWERS))
        train(current.policy, current.previous, pairs)
        rate = win_rate(scores(current.policy, unseen), start)
        print(f"round {current.number + 1}: {len(pairs)} pairs, win rate against the start {rate:.1%}")
        return rate

    rates = [win_rate(scores(policy, unseen), start), *outer.run_rounds(policy, step, rounds=ROUNDS)]
    print("win rates:", ", ".join(f"{rate:.1%}" for rate in rates))
    assert rates[0] < 0.58 < rates[1] < rates[-1]
    return rates


if __name__ == "__main__":
    main()
