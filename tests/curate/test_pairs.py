"""Builders of pairs and stages: worked examples."""

import itertools

import numpy as np
import pytest
import torch

from prefuse import curate, metrics
from prefuse.objectives import get
from tests.curate.kinds import as_dicts, responses, texts


def test_upper_versus_lower_leaves_the_middle_out(make):
    rows = make(responses({"a": [1.0, 5.0, 3.0, 4.0, 2.0]}))
    assert texts(curate.upper_versus_lower(rows)) == [("a1", "a4"), ("a1", "a0"), ("a3", "a4"), ("a3", "a0")]


def test_all_pairs_of_a_prompt(make):
    rows = make(responses({"b": [2.0, 2.0], "a": [1.0, 3.0, 2.0]}))
    assert texts(curate.all_pairs(rows)) == [("a1", "a2"), ("a1", "a0"), ("a2", "a0")]
    assert texts(curate.all_pairs(rows, min_gap=1.5)) == [("a1", "a0")]


def test_curry_stages_of_four_responses(make):
    """Ratings 5, 4, 3, 2: gaps 3, 2, 1, so the pairs (1, 4), (1, 3), (1, 2)."""
    rows = make(responses({"a": [4.0, 2.0, 5.0, 3.0], "b": [1.0, 1.0, 3.0]}))
    stages = curate.curry_stages(rows)
    assert [texts(stage) for stage in stages] == [
        [("a2", "a1"), ("b2", "b1")],
        [("a2", "a3"), ("b2", "b0")],
        [("a2", "a0")],
    ]
    assert len(curate.curry_stages(rows, stages=1)) == 1


def test_curry_stages_give_each_prompt_one_pair_and_get_harder():
    rng = np.random.default_rng(3)
    rows = responses({str(prompt): rng.integers(0, 50, 4).astype(float).tolist() for prompt in range(40)})
    stages = [as_dicts(stage) for stage in curate.curry_stages(rows)]
    gaps = [{pair["prompt"]: pair["chosen_score"] - pair["rejected_score"] for pair in stage} for stage in stages]
    assert all(len(by_prompt) == len(stage) for by_prompt, stage in zip(gaps, stages, strict=True))
    for easy, hard in itertools.pairwise(gaps):
        assert all(easy[prompt] >= gap > 0.0 for prompt, gap in hard.items())


@pytest.mark.parametrize(("stages", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_stages_are_counted(stages, error):
    with pytest.raises(error, match=r"^stages: expected an int"):
        curate.curry_stages([], stages=stages)


def test_nash_pairs_ask_less_of_the_policys_own(make):
    scored = [("teacher", 6.0, False), ("own good", 5.0, True), ("own fair", 4.0, True), ("own bad", 3.0, True)]
    rows = make([{"prompt": "x", "response": r, "score": s, "from_policy": own} for r, s, own in scored])
    assert texts(curate.nash_pairs(rows)) == [
        ("teacher", "own fair"),
        ("teacher", "own bad"),
        ("own good", "own fair"),
        ("own good", "own bad"),
    ]
    assert texts(curate.nash_pairs(rows, min_score=6.0)) == [("teacher", "own fair"), ("teacher", "own bad")]


def test_difficulty_decides_the_ranking():
    """A pair is ranked right exactly if its loss is at most -log σ(βc)."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = (
        torch.randn(2000, generator=generator, dtype=torch.float64) * 10 for _ in range(4)
    )
    loss = get("dpo")(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        beta=0.1,
    ).losses
    difficulty = curate.ranking_difficulty(ref_chosen, ref_rejected)
    right = (chosen - ref_chosen) - (rejected - ref_rejected) >= difficulty
    assert torch.equal(right, chosen >= rejected)
    assert torch.equal(loss <= metrics.ranking_threshold(ref_chosen, ref_rejected, beta=0.1), right)


def test_pairs_by_difficulty(make):
    rows = make(
        [{"id": i, "ref_chosen_logps": -10.0, "ref_rejected_logps": -10.0 + c} for i, c in enumerate([3, -1, 0])]
    )
    ordered = as_dicts(curate.by_difficulty(rows))
    assert [row["id"] for row in ordered] == [1, 2, 0]
    assert [row["difficulty"] for row in ordered] == [-1.0, 0.0, 3.0]


def test_difficulties_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^ref_rejected_logps: expected shape \(2,\), got \(1,\)"):
        curate.ranking_difficulty([1.0, 2.0], [1.0])


def test_history_is_mixed_in(make):
    current, last, oldest = (
        make([{"prompt": f"{name}{i}", "chosen": "c"} for i in range(count)])
        for name, count in [("now", 3), ("last", 20), ("oldest", 20)]
    )
    prompts = [row["prompt"] for row in as_dicts(curate.mix_history(current, [last, oldest], seed=1))]
    assert prompts[:3] == ["now0", "now1", "now2"]
    assert sum(prompt.startswith("last") for prompt in prompts) == 6
    assert sum(prompt.startswith("oldest") for prompt in prompts) == 3
    assert len(set(prompts)) == 12
    again = curate.mix_history(current, [last, oldest], seed=1)
    assert [row["prompt"] for row in as_dicts(again)] == prompts
    assert len(curate.mix_history(current, [])) == 3
    assert len(curate.mix_history(current, [last, oldest], share=1.0, decay=1.0)) == 43


def test_history_of_other_columns_is_refused(make):
    with pytest.raises(ValueError, match=r"^previous\[0\]: expected the columns \['prompt'\]"):
        curate.mix_history(make([{"prompt": "a"}]), [make([{"question": "a"}] * 4)])
    with pytest.raises(ValueError, match=r"^share: expected a number in \[0, 1\], got 1.5"):
        curate.mix_history([], [], share=1.5)
