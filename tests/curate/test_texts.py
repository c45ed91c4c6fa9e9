"""What is done to texts and by the caller's models: blind responses, degradation, hindsight, rationales, alignment."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefuse import curate
from prefuse.curate.on_policy import SEVERITY_WEIGHTS
from tests.curate.kinds import as_dicts

PAIRS = [{"prompt": f"p{i}", "image": f"{i}.png", "chosen": f"c{i}", "rejected": f"r{i}", "id": i} for i in range(3)]


def test_blind_responses_do_not_see_the_image(make):
    rows = make(PAIRS)

    def generate(unseen):
        assert type(unseen) is type(rows)
        assert set(as_dicts(unseen)[0]) == {"prompt", "chosen", "rejected", "id"}
        return (f"blind to {row['prompt']}" for row in as_dicts(unseen))

    seen = curate.blind_responses(rows, generate)
    assert as_dicts(seen) == [{**row, "blind": f"blind to {row['prompt']}"} for row in PAIRS]
    doubled = as_dicts(curate.blind_as_pairs(seen))
    assert doubled[:3] == PAIRS
    assert doubled[3:] == [{**row, "rejected": f"blind to {row['prompt']}"} for row in PAIRS]


def test_blind_responses_are_one_for_each():
    with pytest.raises(ValueError, match=r"^generate: expected it to return 3 items, one for each, got 2"):
        curate.blind_responses(PAIRS, lambda rows: ["a", "b"])
    with pytest.raises(ValueError, match=r"no column 'picture'"):
        curate.blind_responses(PAIRS, lambda rows: ["a"] * 3, image="picture")


TEXT = "Compatibility of systems of linear constraints over the set of natural numbers."


def test_key_phrases_by_hand():
    """Phrases: compatibility | systems | linear constraints | set | natural numbers. Two words score 2 + 2."""
    found = curate.key_phrases(TEXT)
    assert [(phrase.text, phrase.score) for phrase in found] == [
        ("linear constraints", 4.0),
        ("natural numbers", 4.0),
        ("Compatibility", 1.0),
        ("systems", 1.0),
        ("set", 1.0),
    ]
    assert all(TEXT[phrase.start : phrase.end] == phrase.text for phrase in found)


def test_a_word_in_several_phrases_scores_degree_over_frequency():
    """ "deep" is in "deep networks" and alone: degree 2 + 1, frequency 2."""
    found = {phrase.text: phrase.score for phrase in curate.key_phrases("Deep networks are deep.")}
    assert found == {"Deep networks": 1.5 + 2.0, "deep": 1.5}


def test_phrases_end_at_punctuation_stop_words_and_lines():
    found = curate.key_phrases("red, green\nblue don't-stop grün ist's", stop_words={"grün"})
    assert {phrase.text for phrase in found} == {"red", "green", "blue don't-stop", "ist's"}


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.0, TEXT),
        (0.2, "Compatibility of systems of over the set of natural numbers."),
        (0.4, "Compatibility of systems of over the set of ."),
        (1.0, "of of over the of ."),
    ],
)
def test_a_share_of_the_phrases_is_deleted(share, left):
    assert curate.without_key_phrases(TEXT, share) == left


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.floats(0.0, 1.0))
def test_deleting_makes_no_new_characters(text, share):
    left = curate.without_key_phrases(text, share)
    assert len(left) <= len(text)
    remaining = iter(text)
    assert all(character in remaining or character == " " for character in left if character != " ")
    phrases = curate.key_phrases(text)
    if share == 1.0:
        assert curate.key_phrases(left) == []
    assert len({(phrase.start, phrase.end) for phrase in phrases}) == len(phrases)


def test_degraded_responses_lose_more_and_more(make):
    rows = as_dicts(
        curate.degraded(make([{"prompt": "x", "response": TEXT}, {"prompt": "y", "response": ""}]), levels=3)
    )
    assert [row["degree"] for row in rows] == [0, 1, 2] * 2
    assert [row["prompt"] for row in rows] == ["x"] * 3 + ["y"] * 3
    assert rows[0]["response"] == TEXT
    assert len(rows[0]["response"]) > len(rows[1]["response"]) > len(rows[2]["response"])
    assert rows[2]["response"] == "of of over the of ."
    assert rows[5]["response"] == ""


def test_degrading_what_is_no_text():
    with pytest.raises(TypeError, match=r"^response: expected strings, got int in row 0"):
        curate.degraded([{"response": 3}])
    with pytest.raises(ValueError, match=r"^levels: expected an int >= 2"):
        curate.degraded([], levels=1)
    with pytest.raises(ValueError, match=r"^share: expected a number in \[0, 1\], got nan"):
        curate.without_key_phrases("a", float("nan"))


def test_hindsight_turns_the_preference_round(make):
    """Hype is rated .8 and honesty .6 before the outcome is known, .2 and .7 afterwards."""
    rows = make([{"prompt": "shop", "response": r, "score": s} for r, s in [("hype", 0.8), ("honest", 0.6)]])
    known = {"hype": ("broken", 0.2), "honest": ("fits", 0.7)}

    def rate(seen):
        assert [row["outcome"] for row in as_dicts(seen)] == ["broken", "fits"]
        return np.array([known[row["response"]][1] for row in as_dicts(seen)])

    before = as_dicts(curate.best_versus_worst(rows))[0]
    scored = curate.hindsight_scores(rows, lambda rows: [known[row["response"]][0] for row in as_dicts(rows)], rate)
    after = as_dicts(curate.best_versus_worst(scored))[0]
    assert (before["chosen"], after["chosen"]) == ("hype", "honest")
    assert (after["chosen_score"], after["chosen_outcome"]) == (0.7, "fits")


def test_hindsight_needs_all_outcomes_and_finite_ratings():
    rows = [{"prompt": "x", "response": "y"}]
    with pytest.raises(ValueError, match=r"^simulate: expected it to return 1 items"):
        curate.hindsight_scores(rows, lambda rows: [], lambda rows: [1.0])
    with pytest.raises(ValueError, match=r"^rate: nan at \[0\]"):
        curate.hindsight_scores(rows, lambda rows: ["z"], lambda rows: [float("nan")])


def test_rationales_name_the_better_response(make):
    def explain(prompts):
        return [f"because {len(prompt)}" for prompt in prompts]

    first, *_ = as_dicts(curate.add_rationales(make(PAIRS), explain))
    assert first["rationale_prompt"] == (
        "Prompt:\np0\n\nResponse A:\nc0\n\nResponse B:\nr0\n\n"
        "Say in a sentence or two why response A is the better one."
    )
    assert first["rationale"] == f"because {len(first['rationale_prompt'])}"
    detailed = as_dicts(curate.add_rationales(make(PAIRS), explain, style="detailed"))[0]["rationale_prompt"]
    assert "why response A is better than response B" in detailed


def test_rationale_prompts_may_swap_the_responses():
    rows = [{"prompt": "{x}", "chosen": "good", "rejected": "bad"}] * 40
    prompts = [row["rationale_prompt"] for row in curate.add_rationales(rows, list, shuffle=0)]
    swapped = [prompt for prompt in prompts if "Response A:\nbad" in prompt]
    assert 8 < len(swapped) < 32
    assert all(prompt.endswith("why response B is the better one.") for prompt in swapped)
    assert all("response A is the better" in prompt for prompt in prompts if prompt not in swapped)
    assert prompts == [row["rationale"] for row in curate.add_rationales(rows, list, shuffle=0)]
    with pytest.raises(ValueError, match=r"^style: expected one of general, detailed, got 'short'"):
        curate.add_rationales(rows, list, style="short")


def test_alignment_first_then_preference(make):
    rows = make(
        [
            {"prompt": p, "image": i, "ground_truth": g, "response": o, "revised": a, "errors": 1}
            for p, i, g, o, a in ["xigoa", "yjhpb"]
        ]
    )
    split = curate.on_policy_alignment(rows, shared=["image"])
    assert as_dicts(split.alignment) == [
        {"prompt": p, "image": i, "completion": c} for p, i, c in ["xig", "yjh", "xia", "yjb"]
    ]
    assert as_dicts(split.preference)[0] == {
        "prompt": "x",
        "image": "i",
        "chosen": "g",
        "rejected": "o",
        "revised": "a",
        "errors": 1,
    }


def test_alignment_needs_all_three_responses():
    with pytest.raises(ValueError, match=r"no column 'revised'"):
        curate.on_policy_alignment([{"prompt": 1, "ground_truth": 2, "response": 3}])


def test_severity_weights_by_token():
    assert curate.severity_weights([None, 1, 4], [1, 2, 1]) == [1.0, 2.5, 2.5, 1.0]
    assert SEVERITY_WEIGHTS == {1: 2.5, 2: 2.0, 3: 1.5, 4: 1.0}
    with pytest.raises(ValueError, match=r"^severities: expected 1 to 4 or None, got 5 at 0"):
        curate.severity_weights([5], [1])
    with pytest.raises(ValueError, match=r"^lengths: expected 2, one per sentence, got 1"):
        curate.severity_weights([1, 2], [1])


def test_blind_pairs_of_a_data_set_with_long_strings():
    features = datasets.Features(
        {name: datasets.Value("large_string") for name in ("prompt", "image", "chosen", "rejected")}
    )
    rows = datasets.Dataset.from_list([{name: row[name] for name in features} for row in PAIRS], features)
    doubled = curate.blind_as_pairs(curate.blind_responses(rows, lambda rows: ["b"] * 3))
    assert doubled.features["rejected"] == features["rejected"]
    assert doubled["rejected"][:] == ["r0", "r1", "r2", "b", "b", "b"]
