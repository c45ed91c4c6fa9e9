"""Clean preference data of every kind, and tokenizers made on the spot, for the tests of `prefuse.curate.inspect`."""

from __future__ import annotations

import functools
import random

COMMON = "the of and water river light stone house window garden morning letter number answer question because although"
WORDS = [
    *COMMON.split(),
    "between",
    "never",
    "always",
    "slowly",
    "seven",
    "twelve",
    "hundred",
    "green",
    "music",
    "winter",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentence(rng, fewest=4, most=40):
    text = " ".join(rng.choices(WORDS, k=rng.randint(fewest, most)))
    return f"{text[0].upper()}{text[1:]}{rng.choice('.!?')}"


def pairs(count=200, seed=0):
    """Prompts that end without a blank, responses that begin with one."""
    rng = random.Random(seed)
    return [
        {"prompt": f"{sentence(rng)} ({row})", "chosen": f" {sentence(rng)}", "rejected": f" {sentence(rng)}"}
        for row in range(count)
    ]


def labelled(count=200, seed=1):
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": at % 3 != 0}
        for at, row in enumerate(pairs(count, seed))
    ]


def lists(count=200, seed=2):
    rng = random.Random(seed)
    return [
        {
            "prompt": f"{sentence(rng)} ({row})",
            "completions": [f" {sentence(rng)}" for _ in range(2 + row % 3)],
            "scores": [rng.random() for _ in range(2 + row % 3)],
        }
        for row in range(count)
    ]


def said(role, content):
    return {"role": role, "content": content}


def messages(count=200, seed=3):
    """Pairs of messages with the prompt apart."""
    return [
        {
            "prompt": [said("system", "Be brief."), said("user", row["prompt"])],
            "chosen": [said("assistant", row["chosen"].strip())],
            "rejected": [said("assistant", row["rejected"].strip())],
        }
        for row in pairs(count, seed)
    ]


def implicit(count=200, seed=4):
    """Pairs of messages that begin with the prompt."""
    return [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in messages(count, seed)
    ]


def labelled_messages(count=200, seed=5):
    return [
        {
            "prompt": [said("user", row["prompt"])],
            "completion": [said("assistant", row["completion"])],
            "label": row["label"],
        }
        for row in labelled(count, seed)
    ]


def lists_of_messages(count=200, seed=6):
    return [
        {
            "prompt": [said("user", row["prompt"])],
            "completions": [[said("assistant", text)] for text in row["completions"]],
            "scores": row["scores"],
        }
        for row in lists(count, seed)
    ]


OF_TEXT = {"pairs": pairs, "labelled": labelled, "lists": lists}
OF_MESSAGES = {
    "messages": messages,
    "implicit": implicit,
    "labelled_messages": labelled_messages,
    "lists_of_messages": lists_of_messages,
}
CLEAN = {**OF_TEXT, **OF_MESSAGES}


@functools.cache
def trained():
    """A byte-level BPE, as GPT-2's and its successors', that has learnt blanks, indentations and these words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    rng = random.Random(7)
    corpus = [sentence(rng) for _ in range(300)] + [f"def f(x):\n    {word}(x)\n" for word in WORDS] * 8
    corpus += [f"f()[{row}]" for row in range(60)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return made.to_str()


def tokenizer(template=CHATML, bos=None, eos="<|im_end|>", before="", behind="", **options):
    """A tokenizer with this template that puts `before` before and `behind` behind a text."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(trained())
    if before or behind:
        marks = [(mark, made.token_to_id(mark)) for mark in (before, behind) if mark]
        single = " ".join(filter(None, [before, "$A", behind]))
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
    used = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, **options)
    if template:
        used.chat_template = template
    return used
