import itertools
import random

import torch

from prefuse.demo.batches import IGNORED, collate, encode, endless, in_order
from prefuse.demo.pairs import Pair
from prefuse.demo.tokens import EOS, PAD, SEP, Tokenizer

TEXT = ["getLineBuffer(line, buffer)", "Returns the line buffer. The line is a buffer."] * 3


def test_identifiers_and_prose_share_pieces():
    tokenizer = Tokenizer(TEXT)
    assert tokenizer.encode("lineBuffer") == tokenizer.encode("line buffer") == tokenizer.encode("LINE_buffer")
    assert len(tokenizer.encode("lines")) == 2
    assert tokenizer.encode("lines")[0] == tokenizer.encode("line")[0]


def test_unknown_words_meet_themselves_again():
    tokenizer = Tokenizer(TEXT)
    first, second = tokenizer.encode("zygote"), tokenizer.encode("Zygote!")
    assert first == second[: len(first)]
    assert max(first + second) < len(tokenizer)


def test_renaming_keeps_what_is_equal():
    tokenizer = Tokenizer([f"{word} " * 3 for word in "abcdefghijklmnopqrstuvwxyz"] + ["rareword " * 4] + TEXT)
    tokenizer._kept = tokenizer._kept - set(tokenizer.encode("rareword"))
    texts = [tokenizer.encode("rareword line"), tokenizer.encode("line rareword rareword")]
    renamed = tokenizer.renamed(texts, random.Random(0))
    assert renamed[0][0] == renamed[1][1] == renamed[1][2] != texts[0][0]
    assert renamed[0][1:] == texts[0][1:]  # an everyday word stays


def test_collated_labels_are_the_responses():
    tokenizer = Tokenizer(TEXT)
    pairs = [Pair("line()", ("the line", "a buffer is")), Pair("getBuffer(line)", ("returns", "the line"))]
    encoded = encode(pairs, tokenizer)
    batch = collate(encoded)
    assert batch.tokens.shape == batch.labels.shape
    assert batch.tokens.shape[0] == 4
    for row in range(4):
        role, pair = divmod(row, 2)
        expected = [*encoded[pair].responses[role], EOS]
        scored = batch.labels[row] != IGNORED
        assert batch.labels[row][scored].tolist() == expected
        assert torch.equal(batch.tokens[row][scored], batch.labels[row][scored])
        assert batch.tokens[row][int(scored.nonzero()[0]) - 1] == SEP
        assert (batch.tokens[row][int(scored.nonzero()[-1]) + 1 :] == PAD).all()


def test_in_order_has_every_pair_once():
    tokenizer = Tokenizer(TEXT)
    encoded = encode([Pair("line()", ("the line " * count, "a buffer")) for count in range(1, 8)], tokenizer)
    batches = in_order(encoded, 3)
    assert [batch.pairs for batch in batches] == [3, 3, 1]


def test_endless_is_reproducible(library):
    from prefuse.demo.pairs import stdlib_functions

    functions = stdlib_functions(library)
    tokenizer = Tokenizer(one.summary for one in functions)

    def first(seed):
        stream = endless(functions, tokenizer, 2, seed, responses=2, renamed=0.5)
        return [batch.tokens.tolist() for batch in itertools.islice(stream, 5)]

    assert first(0) == first(0)
    assert first(0) != first(1)
