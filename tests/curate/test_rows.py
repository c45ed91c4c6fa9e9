"""Rows of every kind: what comes out is of the kind that went in, and what went in is as it was."""

import copy
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest

from prefuse import curate
from tests.curate.kinds import as_dicts, responses, texts

ROWS = responses({"a": [1.0, 3.0, 2.0], "b": [0.5, 0.5], "c": [4.0], "ü\n'\"": [2.0, -1.0]})


def test_kind_columns_and_dtypes_are_kept(make):
    rows = make(ROWS)
    pairs = curate.best_versus_worst(rows)
    assert type(pairs) is type(rows)
    assert as_dicts(pairs) == [
        {
            "prompt": "a",
            "chosen": "a1",
            "rejected": "a0",
            "chosen_score": 3.0,
            "chosen_tokens": 10,
            "rejected_score": 1.0,
            "rejected_tokens": 0,
        },
        {
            "prompt": "ü\n'\"",
            "chosen": "ü\n'\"0",
            "rejected": "ü\n'\"1",
            "chosen_score": 2.0,
            "chosen_tokens": 0,
            "rejected_score": -1.0,
            "rejected_tokens": 10,
        },
    ]
    assert all(type(row["chosen_tokens"]) is int for row in as_dicts(pairs))


def test_nothing_is_changed_in_place(make):
    rows = make(ROWS)
    before = copy.deepcopy(as_dicts(rows))
    curate.certain_pairs(make([{"passes": [0.5, 0.6]}]), 1)
    curate.ensemble_scores(rows, ["score", "tokens"])
    curate.all_pairs(rows)
    assert as_dicts(rows) == before


def test_shared_columns_belong_to_the_prompt(make):
    rows = make([{**row, "image": f"{row['prompt']}.png"} for row in ROWS])
    first = as_dicts(curate.best_versus_worst(rows, shared=["image"]))[0]
    assert first["image"] == "a.png"
    assert not {"chosen_image", "rejected_image"} & set(first)


def test_columns_have_the_names_that_the_caller_gives(make):
    rows = make([{"q": row["prompt"], "answer": row["response"], "r": row["score"]} for row in ROWS])
    pairs = as_dicts(curate.best_versus_worst(rows, prompt="q", response="answer", score="r"))
    assert list(pairs[0]) == ["q", "chosen", "rejected", "chosen_r", "rejected_r"]


def test_prompts_may_be_conversations(make):
    def turn(text):
        return [{"role": "user", "content": text}]

    rows = make([{**row, "prompt": turn(row["prompt"]), "response": turn(row["response"])} for row in ROWS])
    pairs = as_dicts(curate.best_versus_worst(rows))
    assert [pair["prompt"] for pair in pairs] == [turn("a"), turn("ü\n'\"")]
    assert pairs[0]["chosen"] == turn("a1")


def test_duplicate_rows_are_responses_of_their_own(make):
    rows = make(responses({"a": [1.0, 2.0]}) * 2)
    assert texts(curate.all_pairs(rows)) == [("a1", "a0")] * 4


def test_no_rows_give_no_pairs(make):
    rows = make(ROWS)
    nothing = curate.best_versus_worst(rows, min_gap=100.0)
    assert type(nothing) is type(rows)
    assert len(nothing) == 0
    assert len(curate.all_pairs(nothing, response="chosen", score="chosen_score")) == 0
    assert [
        len(stage)
        for stage in curate.curry_stages(
            rows[:0] if isinstance(rows, list) else nothing, response="chosen", score="chosen_score"
        )
    ] == [0, 0, 0]


@pytest.mark.parametrize("nothing", [pd.DataFrame(), datasets.Dataset.from_list([])], ids=["pandas", "datasets"])
def test_no_rows_need_no_columns(nothing):
    assert len(curate.best_versus_worst(nothing)) == 0
    assert len(curate.tournament_pairs(nothing)) == 0
    assert len(curate.step_pairs(nothing)) == 0


def test_an_empty_list_has_no_columns_and_needs_none():
    assert curate.best_versus_worst([]) == []
    assert curate.rejection_sampling([]) == []
    assert curate.tournament_pairs([]) == []
    assert curate.degraded([]) == []
    assert curate.step_pairs([]) == []
    assert curate.tree_lists([]) == []
    assert curate.correctness_pairs([]) == []
    assert curate.code_and_test_pairs([]) == []
    assert curate.filtered([]) == []
    assert curate.directional_selection([], [1.0, 0.0]) == []
    assert curate.certain_pairs([], 3) == []
    assert curate.add_win_rates([], lambda first, second: []) == []
    assert curate.on_policy_alignment([]) == ([], [])


def test_a_frame_with_any_index():
    frame = pd.DataFrame(ROWS).set_index(pd.Index([7, 7, 3, 2, 9, 1, 0, 5]))
    assert texts(curate.best_versus_worst(frame))[0] == ("a1", "a0")
    with_scores = curate.ensemble_scores(frame, ["score"], combine="mean")
    assert with_scores["score"].tolist() == frame["score"].tolist()


def test_a_frame_whose_columns_are_strided():
    frame = pd.DataFrame(
        np.array([[0.0, 1.0, 5.0], [0.0, 2.0, 6.0], [1.0, 3.0, 7.0]]), columns=["prompt", "score", "response"]
    )
    assert texts(curate.best_versus_worst(frame)) == [(6.0, 5.0)]
    assert texts(curate.curry_stages(frame)[0]) == [(6.0, 5.0)]
    assert len(curate.filtered(frame, rule="best")) == 2
    assert len(curate.rejection_sampling(frame, keep=1)) == 2


def test_a_data_set_that_was_selected_from_and_formatted():
    rows = datasets.Dataset.from_list(ROWS).with_format("numpy").select([4, 0, 7])
    assert texts(curate.all_pairs(rows)) == [("a1", "a2"), ("a1", "a0"), ("a2", "a0")]


def test_a_data_set_of_several_chunks():
    rows = datasets.concatenate_datasets([datasets.Dataset.from_list([row]) for row in ROWS])
    assert rows.data.num_rows == len(ROWS)
    assert texts(curate.best_versus_worst(rows)) == texts(curate.best_versus_worst(ROWS))


def test_features_of_a_data_set_are_kept():
    features = datasets.Features(
        {
            "prompt": datasets.Value("large_string"),
            "response": datasets.Value("string"),
            "score": datasets.Value("float32"),
            "tokens": datasets.ClassLabel(names=[str(i) for i in range(21)]),
            "image": datasets.Image(decode=False),
        }
    )
    rows = datasets.Dataset.from_list([{**row, "image": {"bytes": b"png", "path": None}} for row in ROWS], features)
    pairs = curate.best_versus_worst(rows, shared=["image"])
    assert pairs.features["prompt"] == features["prompt"]
    assert pairs.features["chosen_score"] == features["score"]
    assert pairs.features["rejected_tokens"] == features["tokens"]
    assert pairs.features["image"] == features["image"]
    assert pairs[0]["image"]["bytes"] == b"png"
    stage = curate.curry_stages(rows, shared=["image"])[0]
    assert stage.features == pairs.features
    assert curate.filtered(rows).features == rows.features


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"prompt": ["a"]}, "dict"),
        ([1, 2], "list"),
        (np.zeros(3), "ndarray"),
        ("rows", "str"),
        (iter([]), "list_iterator"),
    ],
)
def test_other_kinds_are_refused(wrong, kind):
    with pytest.raises(TypeError, match=f"^rows: expected a list of dicts, a pandas.DataFrame or .* got {kind}"):
        curate.best_versus_worst(wrong)


def test_a_dictionary_of_splits_is_refused_with_advice():
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    with pytest.raises(TypeError, match=r"got DatasetDict; pass one of its splits"):
        curate.best_versus_worst(splits)


def test_a_missing_column_is_named(make):
    with pytest.raises(ValueError, match=r"^rows: no column 'reward'; there are prompt, response, score, tokens"):
        curate.best_versus_worst(make(ROWS), score="reward")
    with pytest.raises(ValueError, match=r"^rows: no column 'image'"):
        curate.best_versus_worst(make(ROWS), shared=["image"])


def test_a_column_missing_in_one_dict_is_named():
    with pytest.raises(ValueError, match=r"no column 'score' in row 1, while others have it"):
        curate.best_versus_worst([ROWS[0], {"prompt": "a", "response": "b"}])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_scores_that_are_no_numbers_are_refused(make, score):
    rows = make([*ROWS[:2], {**ROWS[2], "score": score}, *ROWS[3:]])
    with pytest.raises(ValueError, match=r"column 'score': (nan|inf) at row 2, expected finite numbers"):
        curate.best_versus_worst(rows)


def test_scores_that_are_texts_are_refused(make):
    with pytest.raises(TypeError, match=r"column 'score': expected numbers, got 'good'"):
        curate.best_versus_worst(
            make([{**row, "score": text} for row, text in zip(ROWS, ["good", "1.5"], strict=False)])
        )


def test_missing_prompts_are_refused(make):
    rows = make([{**row, "prompt": None if index == 3 else row["prompt"]} for index, row in enumerate(ROWS)])
    with pytest.raises(ValueError, match=r"^prompt: missing in row 3"):
        curate.all_pairs(rows)


def test_neither_pandas_nor_datasets_is_imported():
    code = (
        "import sys, prefuse; assert 'prefuse.curate' not in sys.modules;"
        "prefuse.curate.best_versus_worst([{'prompt': 1, 'response': 2, 'score': 3}]);"
        "assert not {'pandas', 'datasets', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_such_attribute():
    import prefuse

    with pytest.raises(AttributeError, match=r"no attribute 'curates'"):
        _ = prefuse.curates
