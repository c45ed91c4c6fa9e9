"""Every check finds the fault that is planted, and nothing in clean data."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from prefuse import curate
from tests.curate import inspected
from tests.curate.kinds import MAKERS

NAMES = ["duplicate", "contradiction", "identical", "empty", "truncated", "prefix", "length", "turns", "template"]


@pytest.mark.parametrize("kind", inspected.CLEAN)
@pytest.mark.parametrize("tokenized", [False, True], ids=["text", "tokens"])
def test_clean_data_has_no_alarm(kind, tokenized):
    rows = inspected.CLEAN[kind]()
    found = curate.inspect(rows, inspected.tokenizer() if tokenized else None)
    assert found.ok and not found.found, found
    assert [check.name for check in found.checks] == NAMES
    assert found.rows == found.sampled == len(rows)
    assert found.unit == ("tokens" if tokenized else "characters")
    assert (found["prefix"].of > 0) == tokenized
    assert found.messages == (kind in inspected.OF_MESSAGES)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("data", inspected.CLEAN)
def test_rows_of_every_kind_are_read_alike(kind, data):
    rows = inspected.CLEAN[data](40)
    given = MAKERS[kind](rows)
    assert curate.inspect(given).as_dict() == curate.inspect(rows).as_dict()


def planted(kind, at, **changes):
    """Clean rows, of which one has other values."""
    rows = inspected.CLEAN[kind]()
    rows[at] = {**rows[at], **changes}
    return rows


def rows_found(check):
    return [row for row, _ in check.examples]


def test_duplicates():
    for kind in inspected.CLEAN:
        rows = inspected.CLEAN[kind]()
        found = curate.inspect([*rows, rows[3], rows[3]])
        assert [check.name for check in found.found] == ["duplicate"], kind
        assert found["duplicate"].count == 2 and rows_found(found["duplicate"]) == [200, 201]
        assert "as row 3" in found["duplicate"].examples[0].text
        assert not found.ok


def test_prompts_that_come_again_are_no_duplicates():
    rows = inspected.pairs()
    found = curate.inspect([*rows, {**rows[3], "chosen": " Another answer."}])
    assert found.ok and found["duplicate"].numbers == {"different prompts": 200.0}


def test_contradictions():
    rows = inspected.pairs()
    swapped = {"prompt": rows[5]["prompt"], "chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]}
    found = curate.inspect([*rows, swapped])
    assert [(check.name, check.count) for check in found.found] == [("contradiction", 1)]
    assert "opposite of row 5" in found["contradiction"].examples[0].text
    rows = inspected.labelled()
    found = curate.inspect([*rows, {**rows[5], "label": not rows[5]["label"]}])
    assert [(check.name, check.count) for check in found.found] == [("contradiction", 1)]


@pytest.mark.parametrize(("chosen", "rejected"), [(" Yes.", " Yes."), (" Yes.", "Yes.\n"), ("\tYes.", " Yes. ")])
def test_identical_responses(chosen, rejected):
    found = curate.inspect(planted("pairs", 7, chosen=chosen, rejected=rejected))
    assert [(check.name, check.count) for check in found.found] == [("identical", 1)]
    assert rows_found(found["identical"]) == [7]


def test_identical_messages_and_lists():
    answer = [inspected.said("assistant", "Yes.")]
    found = curate.inspect(planted("messages", 7, chosen=answer, rejected=answer))
    assert [(check.name, check.count) for check in found.found] == [("identical", 1)]
    found = curate.inspect(planted("lists", 7, completions=["a.", "a. ", "a."], scores=[1.0, 2.0, 0.0]))
    assert [(check.name, check.count) for check in found.found] == [("identical", 1)]
    # some that are alike are what sampling does
    assert curate.inspect(planted("lists", 7, completions=["a.", "a.", "b."], scores=[1.0, 1.0, 0.0])).ok


@pytest.mark.parametrize("nothing", ["", " \n\t", None, "\u2003"])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_empty_text(column, nothing):
    found = curate.inspect(planted("pairs", 9, **{column: nothing}))
    assert [(check.name, check.count) for check in found.found] == [("empty", 1)]
    assert rows_found(found["empty"]) == [9]


def test_missing_values_of_pandas():
    frame = pd.DataFrame(planted("pairs", 9, chosen=float("nan")))
    assert curate.inspect(frame)["empty"].count == 1
    frame["chosen"] = frame["chosen"].astype("string")
    assert curate.inspect(frame)["empty"].count == 1


@pytest.mark.parametrize(
    "chosen",
    [
        [],
        None,
        [inspected.said("assistant", "")],
        [inspected.said("assistant", None)],
        [inspected.said("assistant", [])],
    ],
)
def test_empty_messages(chosen):
    found = curate.inspect(planted("messages", 9, chosen=chosen))
    assert found["empty"].count == 1 and rows_found(found["empty"]) == [9]


def test_what_is_no_text_is_not_empty():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    image = inspected.said("user", [{"type": "image"}])
    assert curate.inspect(planted("messages", 9, chosen=[call], prompt=[image])).ok


def test_an_answer_that_ends_in_an_empty_turn_is_empty():
    turns = [inspected.said("assistant", "Yes?"), inspected.said("user", "No."), inspected.said("assistant", "")]
    found = curate.inspect(
        planted("messages", 9, chosen=turns, rejected=[*turns[:2], inspected.said("assistant", "x")])
    )
    assert found["empty"].count == 1


def test_empty_lists():
    found = curate.inspect(planted("lists", 9, completions=[], scores=[]))
    assert found["empty"].count == 1 and "1 lists without a response" in found["empty"].what
    assert curate.inspect(planted("lists", 9, completions=None, scores=[]))["empty"].count == 1


@pytest.mark.parametrize(
    "rejected", [" So:\n```python\nprint(1)\n", " <think>Let me see", " a\n```\nb\n```\nc\n```py\nd", "```"]
)
def test_responses_that_end_within_something(rejected):
    found = curate.inspect(planted("pairs", 11, rejected=rejected))
    assert [(check.name, check.count) for check in found.found] == [("truncated", 1)]
    assert rows_found(found["truncated"]) == [11]


@pytest.mark.parametrize(
    "rejected",
    [
        " So:\n```python\nprint(1)\n```",
        " <think>Let me see</think> Yes.",
        " A fence is ``` in Markdown.",
        "</think> Yes.",
    ],
)
def test_responses_that_end_well(rejected):
    assert curate.inspect(planted("pairs", 11, rejected=rejected)).ok


def cut_at(rows, column, cut):
    return [{**row, column: cut(row[column])} for row in rows]


def test_responses_cut_at_one_length():
    rows = inspected.pairs(400)
    by_characters = curate.inspect(cut_at(rows, "rejected", lambda text: text[:100]))
    assert "at exactly 100 characters of rejected" in by_characters["truncated"].what
    assert by_characters["truncated"].count > 100
    by_words = curate.inspect(cut_at(rows, "chosen", lambda text: " " + " ".join(text.split()[:24])))
    assert "at exactly 24 words of chosen" in by_words["truncated"].what
    used = inspected.tokenizer()
    by_tokens = curate.inspect(cut_at(rows, "chosen", lambda text: used.decode(used(text)["input_ids"][:20])), used)
    assert "tokens of chosen" in by_tokens["truncated"].what


def test_lengths_that_are_a_form_are_not_cut():
    rows = [{**row, "chosen": f"{at:040d}x{at:040d}", "rejected": "-" * 80} for at, row in enumerate(inspected.pairs())]
    assert curate.inspect(rows)["truncated"].count == 0


def test_what_does_not_fit_is_truncated():
    rows = inspected.pairs()
    rows[4] = {**rows[4], "chosen": " water" * 300 + "."}
    used = inspected.tokenizer()
    assert curate.inspect(rows, used)["truncated"].count == 0
    found = curate.inspect(rows, used, max_length=256)
    assert rows_found(found["truncated"]) == [4] and "1 are longer than 256 tokens" in found["truncated"].what
    known = inspected.tokenizer(model_max_length=256)
    assert curate.inspect(rows, known)["truncated"].count == 1


def test_length_bias():
    rows = inspected.pairs(300)
    longer = [{**row, "chosen": f"{row['chosen']} {row['rejected']}"} for row in rows]
    found = curate.inspect(longer)
    assert [check.name for check in found.found] == ["length"]
    assert found["length"].numbers["share"] == 1.0 and "longer" in found["length"].advice
    shorter = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in longer]
    found = curate.inspect(shorter)
    assert found["length"].numbers["share"] == 0.0 and "shorter" in found["length"].advice
    assert curate.inspect(longer[:8])["length"].count == 0  # too few to tell


def test_length_of_labels_and_lists():
    rows = [{**row, "completion": row["completion"] * (2 + 3 * row["label"])} for row in inspected.labelled(300)]
    assert [check.name for check in curate.inspect(rows).found] == ["length"]
    rows = [{**row, "scores": [len(text) for text in row["completions"]]} for row in inspected.lists()]
    assert [check.name for check in curate.inspect(rows).found] == ["length"]
    rows = [{"prompt": row["prompt"], "completions": row["completions"]} for row in rows]
    assert curate.inspect(rows)["length"].of == 0
    rows = [{**row, "label": True} for row in inspected.labelled()]
    assert curate.inspect(rows)["length"].what == "all rows have one label"


def test_the_interval_of_length():
    """70 of 100 pairs: Wilson's interval at 99 %, from its formula."""
    rows = [{"prompt": f"{at}?", "chosen": "a." * (3 if at < 70 else 1), "rejected": "b.b."} for at in range(100)]
    numbers = curate.inspect(rows)["length"].numbers
    z = 2.576
    half = z * math.sqrt(0.7 * 0.3 / 100 + z**2 / 4e4) / (1 + z**2 / 100)
    centre = (0.7 + z**2 / 200) / (1 + z**2 / 100)
    assert numbers["share"] == 0.7
    assert (numbers["low"], numbers["high"]) == pytest.approx((centre - half, centre + half))


def test_the_interval_of_labels_covers():
    """P(longer) of two geometric lengths is known: its interval has it in about 99 of 100 draws."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        good, bad = rng.geometric(0.02, 150), rng.geometric(0.03, 150)
        rows = [
            {"prompt": "?", "completion": "x" * length, "label": label}
            for label, lengths in ((True, good), (False, bad))
            for length in lengths.tolist()
        ]
        numbers = curate.inspect(rows)["length"].numbers
        tie = 0.02 * 0.03 / (1 - 0.98 * 0.97)
        longer = 0.03 * 0.98 / (1 - 0.98 * 0.97) + tie / 2
        covered += numbers["low"] <= longer <= numbers["high"]
    assert covered >= 96


def test_turns_of_messages():
    more = [inspected.said("assistant", "Yes?"), inspected.said("user", "No."), inspected.said("assistant", "Then no.")]
    for changes, what in (
        ({"chosen": more}, "different numbers of turns"),
        ({"chosen": more[:2], "rejected": more[:2]}, "does not end with the assistant"),
        ({"chosen": more[1:], "rejected": more[1:]}, "begins with the user"),
        ({"prompt": [*more, inspected.said("assistant", "And")]}, "ends with the assistant"),
    ):
        found = curate.inspect(planted("messages", 2, **changes))
        assert "turns" in [check.name for check in found.found] and what in found["turns"].what
        assert rows_found(found["turns"]) == [2]


def test_turns_of_text():
    found = curate.inspect(planted("pairs", 2, rejected=" No.\n\nHuman: why?\n\nAssistant: because."))
    assert [(check.name, check.count) for check in found.found] == [("turns", 1)]
    rows = inspected.pairs()
    twice = [{**row, **{side: row["prompt"] + row[side] for side in ("chosen", "rejected")}} for row in rows]
    found = curate.inspect(twice)
    assert [(check.name, check.count) for check in found.found] == [("turns", 200)]
    assert "begin with the prompt" in found["turns"].what


def test_what_both_begin_with_is_the_prompt():
    texts = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in inspected.pairs()]
    found = curate.inspect(texts)
    assert found.ok
    apart = curate.inspect(inspected.pairs())
    assert abs(found.prompt_lengths - apart.prompt_lengths).max() <= 12  # where responses begin alike, too
    assert curate.inspect(inspected.implicit()).lengths["chosen"].tolist() == [
        len(row["chosen"][-1]["content"]) for row in inspected.implicit()
    ]


def test_shared_characters_and_tokens():
    rows = [{"prompt": "p" * 60, "chosen": "c" * 20, "rejected": "r" * 20}]
    assert curate.inspect(rows).shared == 60 / 160
    lists = [{"prompt": "p" * 60, "completions": ["c" * 20, "d" * 20, "e" * 20]}]
    assert curate.inspect(lists).shared == 120 / 240
    assert curate.inspect(inspected.labelled()).shared == 0.0
    used = inspected.tokenizer()
    rows = inspected.pairs(20)
    whole = sum(
        len(used(row["prompt"] + row[side] + "<|im_end|>")["input_ids"])
        for row in rows
        for side in ("chosen", "rejected")
    )
    spared = sum(len(ids) for ids in used([row["prompt"] for row in rows])["input_ids"])
    assert curate.inspect(rows, used).shared == pytest.approx(spared / whole, rel=0.1)


def test_the_sample_is_seeded():
    rows, used = inspected.pairs(), inspected.tokenizer()
    for at in range(0, 200, 2):
        rows[at] = {**rows[at], "prompt": f"{rows[at]['prompt']} ", "chosen": "water stone.", "rejected": "the light."}
    first, again, other = (curate.inspect(rows, used, sample=50, seed=seed) for seed in (0, 0, 1))
    assert first.sampled == first["prefix"].of == 50
    assert first["prefix"].examples == again["prefix"].examples != other["prefix"].examples
    assert 10 < first["prefix"].count < 40
    assert first["duplicate"].of == 200


def test_what_is_tolerated():
    rows = planted("pairs", 9, chosen="")
    assert curate.inspect(rows, tolerance=0.005).ok and not curate.inspect(rows, tolerance=0.004).ok
    assert curate.inspect(rows, tolerance=0.005)["empty"].count == 1


def test_how_it_shows_itself():
    found = curate.inspect(planted("pairs", 9, chosen="<b>&"), inspected.tokenizer())
    assert repr(found).startswith("200 rows of pairs, text\ncheck")
    assert all(name in repr(found) for name in NAMES)
    empty = curate.inspect(planted("pairs", 9, chosen=""))
    assert f"empty: {empty['empty'].advice}" in repr(empty) and "row 9" in repr(empty)
    html = curate.inspect(planted("pairs", 9, chosen="<b>&\n```\n"))._repr_html_()
    assert html.startswith("<b>200 rows") and "&lt;b&gt;&amp;" in html
    assert json.loads(json.dumps(empty.as_dict()))["checks"]["empty"]["count"] == 1
    with pytest.raises(KeyError, match="no check 'emtpy'; there are duplicate"):
        empty["emtpy"]
    with pytest.raises(AttributeError):
        empty.rows = 3


def test_a_page_of_plots():
    pytest.importorskip("matplotlib")
    from prefuse import viz

    for make in inspected.CLEAN.values():
        figure = viz.inspection(curate.inspect(make(3)))
        assert len(figure.axes) == 4
    assert figure._repr_png_()
    assert viz.inspection(curate.inspect([{"prompt": "", "completions": []}]))._repr_png_()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: curate.inspect([]), ValueError, r"data: expected the columns prompt, chosen .* got none"),
        (lambda: curate.inspect(3), TypeError, "data: expected a list of dicts, .* got int"),
        (lambda: curate.inspect({"prompt": "x"}), TypeError, "data: expected rows, got dict; pass a list of such"),
        (lambda: curate.inspect([{"text": "x"}]), ValueError, "got text; other names go as columns="),
        (
            lambda: curate.inspect([{"prompt": "x", "completion": "y"}]),
            ValueError,
            "prompt and completion alone tell no preference: label is missing",
        ),
        (
            lambda: curate.inspect(inspected.pairs(), columns={"question": "a"}),
            ValueError,
            "columns: expected names among",
        ),
        (
            lambda: curate.inspect(inspected.pairs(), columns={"chosen": "best"}),
            ValueError,
            "got prompt, chosen, rejected; there is no 'best'",
        ),
        (
            lambda: curate.inspect({"prompt": ["a"], "chosen": ["b", "c"], "rejected": ["d"]}),
            ValueError,
            "data: expected columns of equal lengths, got 1, 2",
        ),
        (
            lambda: curate.inspect({"prompt": [], "chosen": [], "rejected": []}),
            ValueError,
            "data: expected at least one row",
        ),
        (
            lambda: curate.inspect(planted("pairs", 3, chosen=5)),
            TypeError,
            "data: chosen, row 3: expected text or a list of messages, got int 5",
        ),
        (
            lambda: curate.inspect(planted("pairs", 3, chosen=[{"role": "user", "content": "x"}])),
            TypeError,
            "data: chosen: expected text or messages in all rows, got text in row 0, messages in 3",
        ),
        (
            lambda: curate.inspect(planted("messages", 3, chosen=[{"from": "gpt", "value": "x"}])),
            TypeError,
            "data: chosen, row 3: expected messages with role and content, got a dict with from, value; from and",
        ),
        (
            lambda: curate.inspect(planted("messages", 3, chosen=["x"])),
            TypeError,
            "data: chosen, row 3: expected messages with role and content, got str 'x'",
        ),
        (
            lambda: curate.inspect(planted("messages", 3, chosen=[{"role": "user", "content": 3}])),
            TypeError,
            "chosen, row 3: expected a message's content to be text or a list of parts, got int 3",
        ),
        (
            lambda: curate.inspect(planted("messages", 3, chosen=[{"role": None, "content": "x"}])),
            TypeError,
            "chosen, row 3: expected a message's role to be text, got NoneType None",
        ),
        (
            lambda: curate.inspect(planted("lists", 0, scores=[1.0, {}])),
            TypeError,
            "data: scores, row 0: expected finite numbers, got dict {}",
        ),
        (
            lambda: curate.inspect([{**row, "prompt": "x"} for row in inspected.messages()]),
            ValueError,
            r"data: prompt is text and chosen are messages; .* leave the column out: columns=\{'prompt': None\}",
        ),
        (
            lambda: curate.inspect([{**row, "rejected": "x"} for row in inspected.messages()]),
            ValueError,
            "expected all columns to be text or all to be messages; chosen is messages, rejected is text",
        ),
        (
            lambda: curate.inspect([{"prompt": [], "chosen": None, "rejected": "x"}]),
            ValueError,
            "expected all columns to be text or all to be messages; prompt is messages, rejected is text",
        ),
        (
            lambda: curate.inspect(planted("labelled", 3, label="good")),
            TypeError,
            "data: label, row 3: expected True or False, got str 'good'",
        ),
        (
            lambda: curate.inspect(planted("lists", 3, completions="x")),
            TypeError,
            "data: completions, row 3: expected a list of responses, got str 'x'",
        ),
        (
            lambda: curate.inspect(planted("lists", 0, scores=[1.0])),
            TypeError,
            r"data: scores, row 0: expected a list of 2 numbers, one per response, got list \[1.0\]",
        ),
        (
            lambda: curate.inspect(planted("lists", 0, scores=[1.0, float("nan")])),
            TypeError,
            "data: scores, row 0: expected finite numbers, got float nan",
        ),
        (
            lambda: curate.inspect([{"chosen": "a", "rejected": "b"}, {"chosen": "a"}]),
            ValueError,
            "no column 'rejected' in row 1",
        ),
        (lambda: curate.inspect(inspected.pairs(), sample=0), ValueError, "sample: expected at least 1, got 0"),
        (lambda: curate.inspect(inspected.pairs(), sample=1.5), TypeError, "sample: expected an int, got float"),
        (
            lambda: curate.inspect(inspected.pairs(), max_length=-1),
            ValueError,
            "max_length: expected at least 1, got -1",
        ),
        (lambda: curate.inspect(inspected.pairs(), tolerance=1.0), ValueError, "tolerance: expected a share"),
        (lambda: curate.inspect(inspected.pairs(), tolerance="0"), TypeError, "tolerance: expected a number, got str"),
        (lambda: curate.inspect(inspected.pairs(), seed="a"), TypeError, "seed: expected an int"),
        (
            lambda: curate.inspect(inspected.pairs(), 3),
            TypeError,
            "tokenizer: expected a transformers tokenizer, .* got int",
        ),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_other_names_of_columns():
    rows = [{"q": row["prompt"], "yes": row["chosen"], "no": row["rejected"]} for row in inspected.pairs()]
    found = curate.inspect(rows, columns={"prompt": "q", "chosen": "yes", "rejected": "no"})
    assert found.ok and found.kind == "pairs"
    rows = [{**row, "prompt": "x"} for row in inspected.implicit()]
    assert curate.inspect(rows, columns={"prompt": None}).ok
