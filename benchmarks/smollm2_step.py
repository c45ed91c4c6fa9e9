"""One DPO step on SmolLM2-135M-Instruct with LoRA by its parts: TRL's own trainer, plain PyTorch, prefuse.

    OMP_NUM_THREADS=1 python benchmarks/smollm2_step.py [--pairs 4] [--rounds 2] [--results DIR]

What `python -m prefuse demo --model smollm2` measures at its end, without a training: a few questions with a short
answer of ours and the model's own, each hand in turn in the same rounds; processor time with one thread.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from prefuse.bench import machine, results
from prefuse.demo.batches import padded
from prefuse.demo.pretrained import answers, cost, questions, source
from prefuse.demo.pretrained.encoding import Pair, assistant, encode, user
from prefuse.demo.pretrained.policy import with_lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    start = machine.describe()
    model, tokenizer = source.load("smollm2")
    asked = questions.questions(0.25).training
    asked = asked[:: len(asked) // options.pairs][: options.pairs]
    said = answers.draw(model, tokenizer, [user(one.text) for one in asked], 0)
    pairs = [
        Pair(user(one.text), assistant(one.answer), assistant(own.text), (True, own.complete))
        for one, own in zip(asked, said, strict=True)
    ]
    passes = with_lora(model, tokenizer, 0, share_prompts=True)
    found = cost.measure(passes, tokenizer, padded(encode(pairs, tokenizer, 256), passes.pad), options.rounds)
    report = {
        "comparison": "a DPO step on SmolLM2-135M-Instruct, LoRA, float32",
        "machine": start,
        "cost": asdict(found),
    }
    print(results.write(options.results, "smollm2_step", report))
    for part in found.parts:
        print(f"{part.part:42} {part.by:26} {part.seconds:7.3f} s fastest, {part.median:7.3f} s median")
    print(found.trl, found.head_bytes)


if __name__ == "__main__":
    main()
