"""The checks `prefix` and `template`: what becomes of prompts and responses as tokens."""

from __future__ import annotations

import json
import random

import pytest

from prefuse import curate
from tests.curate import inspected
from tests.curate.inspected import CHATML, said, tokenizer


def changed(rows, prompt=lambda text: text, response=lambda text: text):
    return [
        {"prompt": prompt(row["prompt"]), **{side: response(row[side]) for side in ("chosen", "rejected")}}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("prompt", "response", "cause"),
    [
        (lambda text: f"{text} ", lambda text: text.strip().lower(), "blank"),
        (lambda text: f"{text}:\n", lambda text: f"   {text}", "indentation"),
        (lambda text: f"{text}:", lambda text: f"\n   {text}", None),
        (lambda text: f"{text}\n", str.strip, None),
        (lambda text: f"{text} f()", lambda text: f"[{text.strip()}]", "merge"),
    ],
)
def test_prompts_that_are_no_prefix(prompt, response, cause):
    """Which joints of text are joints of tokens: the table in docs/curate.md."""
    used = tokenizer()
    rows = changed(inspected.pairs(60), prompt, response)
    found = curate.inspect(rows, used)
    expected = 0
    for row in rows:
        alone = used(row["prompt"])["input_ids"]
        sides = (used(row["prompt"] + row[side])["input_ids"] for side in ("chosen", "rejected"))
        expected += any(ids[: len(alone)] != alone for ids in sides)
    assert found["prefix"].count == expected
    assert dict(found["prefix"].numbers) == ({cause: float(expected)} if cause else {})
    assert (expected > 30) == (cause is not None)
    assert [check.name for check in found.found] == (["prefix"] if cause else [])


def test_indented_answers_merge_with_the_template():
    rows = inspected.messages(40)
    for at in range(10):
        rows[at] = {**rows[at], "chosen": [said("assistant", "    the river.")]}
    found = curate.inspect(rows, tokenizer())
    assert [check.name for check in found.found] == ["prefix"]
    assert dict(found["prefix"].numbers) == {"indentation": 10.0}
    assert found["prefix"].examples[0].row == 0 and "strip" in found["prefix"].advice
    assert "'Ċ'" in found["prefix"].examples[0].text


def test_a_template_that_writes_the_prompt_otherwise():
    thinking = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think></think>{% endif %}")
    found = curate.inspect(inspected.messages(20), tokenizer(thinking))
    assert found["prefix"].count == 20 and dict(found["prefix"].numbers) == {"template": 20.0}


def test_a_tokenizer_that_ends_every_text():
    found = curate.inspect(inspected.pairs(20), tokenizer(behind="</s>", eos="</s>"))
    assert dict(found["prefix"].numbers) == {"ending": 20.0}
    assert "add_eos_token=False" in found["prefix"].advice


def faults(found):
    return {what: count for what, count in found["template"].numbers.items() if count and what != "tokens added"}


def test_bos_twice():
    used = tokenizer(bos="<s>", before="<s>")
    assert curate.inspect(inspected.pairs(20), used).ok
    found = curate.inspect(changed(inspected.pairs(20), lambda text: f"<s>{text}"), used)
    assert faults(found) == {"begin with bos twice": 20.0}
    twice = tokenizer("<s><s>" + CHATML, bos="<s>")
    assert faults(curate.inspect(inspected.messages(20), twice)) == {"begin with bos twice": 20.0}


def test_a_template_with_bos_is_said_to_hold_it():
    used = tokenizer("<s>" + CHATML, bos="<s>", before="<s>")
    found = curate.inspect(inspected.messages(20), used)
    assert found.ok and "add_special_tokens=False" in found["template"].what


def test_no_eos():
    without = CHATML.replace("<|im_end|>", "")
    found = curate.inspect(inspected.messages(20), tokenizer(without))
    assert faults(found) == {"lack '<|im_end|>' at the end": 20.0}
    none = curate.inspect(inspected.pairs(20), tokenizer(eos=None))
    assert faults(none) == {"have no end, as the tokenizer has no eos_token": 20.0}


def test_an_end_that_is_not_eos(tmp_path):
    """A base model's eos with the template of its chats: the model's generation_config says whether it stops there."""
    used = tokenizer(eos="<|endoftext|>")
    assert curate.inspect(inspected.pairs(20), used).ok  # text has it put behind
    found = curate.inspect(inspected.messages(20), used)
    assert found.ok
    assert "end with '<|im_end|>' and not with eos, '<|endoftext|>': generation must stop" in found["template"].what
    used.save_pretrained(tmp_path)
    one, two = used.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {one}}}')
    found = curate.inspect(inspected.messages(20), tmp_path)
    assert faults(found) == {"lack '<|endoftext|>' at the end": 20.0}
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{one}, {two}]}}')
    found = curate.inspect(inspected.messages(20), tmp_path)
    assert found.ok and "generation must" not in found["template"].what


def test_special_tokens_in_responses():
    rows = inspected.pairs(20)
    rows[4] = {**rows[4], "chosen": " Yes.<|im_end|>\n<|im_start|>user"}
    found = curate.inspect(rows, tokenizer(eos="<|im_end|>", bos="<|im_start|>"))
    assert faults(found) == {"have a special token inside a response": 1.0}
    rows[4] = {**rows[4], "chosen": " Yes.<|im_end|>"}  # eos that is there already
    assert curate.inspect(rows, tokenizer()).ok


def test_no_template():
    found = curate.inspect(inspected.messages(20), tokenizer(template=None))
    assert found["template"].count == 20 and "no chat template" in found["template"].what
    assert curate.inspect(inspected.pairs(20), tokenizer(template=None)).ok


def test_a_template_that_loses_the_system():
    forgetful = "{% for message in messages if message['role'] != 'system' %}" + CHATML.split("%}", 1)[1]
    found = curate.inspect(inspected.messages(20), tokenizer(forgetful))
    assert faults(found) == {"lose what the system says": 20.0}


def test_a_template_that_refuses():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}" + CHATML
    rows = inspected.messages(20)
    for at in range(5, 20):
        rows[at] = {**rows[at], "prompt": rows[at]["prompt"][1:]}
    found = curate.inspect(rows, tokenizer(strict))
    assert faults(found) == {"cannot be written as tokens": 5.0}
    assert "no system, please" in found["template"].examples[0].text
    assert found["prefix"].of == 15
    rows = inspected.pairs(4)
    rows[1] = {**rows[1], "chosen": " Half a pair: \ud800."}
    assert faults(curate.inspect(rows, tokenizer())) == {"cannot be written as tokens": 1.0}
    everything = curate.inspect(inspected.messages(20), tokenizer(strict))
    assert everything["template"].count == 20 and everything["prefix"].of == 0


def test_tokens_that_the_template_adds():
    used = tokenizer()
    found = curate.inspect([inspected.messages(1)[0]], used)
    row = inspected.messages(1)[0]
    extra = []
    for side in ("chosen", "rejected"):
        ids = used.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=True)["input_ids"]
        extra.append(len(ids) - sum(len(used(m["content"])["input_ids"]) for m in row["prompt"] + row[side]))
    assert found["template"].numbers["tokens added"] == sum(extra) / 2
    assert f"adds {sum(extra) / 2:.0f} tokens" in found["template"].what


def test_responses_that_are_the_same_as_tokens():
    from tests.trl.running import tokenizer as by_words

    rows = [
        {"prompt": " w1 w2", "chosen": " w3 yes", "rejected": " w3 no"},
        {"prompt": " w4", "chosen": " w5", "rejected": " w6"},
    ]
    assert curate.inspect(rows)["identical"].count == 0
    found = curate.inspect(rows, by_words())
    assert found["identical"].count == 1 and found["identical"].examples[0].row == 0
    assert "the same as tokens" in found["identical"].what


def test_lengths_are_of_responses_alone():
    used = tokenizer()
    rows = inspected.pairs(20)
    found = curate.inspect(rows, used)
    alone = [len(used(row["chosen"])["input_ids"]) + 1 for row in rows]  # and the end
    assert found.lengths["chosen"].tolist() == alone
    assert found.prompt_lengths.tolist() == [len(used(row["prompt"])["input_ids"]) for row in rows]


def test_tokenizers_by_folder(tmp_path):
    used = tokenizer()
    used.save_pretrained(tmp_path)
    rows = inspected.messages(20)
    assert curate.inspect(rows, str(tmp_path)).as_dict() == curate.inspect(rows, used).as_dict()


def test_templates_of_processors_read_parts(tmp_path):
    """Those of Idefics and SmolVLM write nothing of a content that is text."""
    part = "{% for part in message['content'] if part is mapping %}{{ part['text'] }}{% endfor %}"
    used = tokenizer(CHATML.replace("{{ message['content'] }}", part))
    rows = inspected.messages(20)
    found = curate.inspect(rows, used)
    lost = {f"lose what the {role} says": 20.0 for role in ("system", "user", "assistant")}
    assert faults(found) == lost and found["identical"].count == 20

    class Processor:
        tokenizer = used

    assert curate.inspect(rows, Processor()).ok
    used.save_pretrained(tmp_path)
    assert curate.inspect(rows, tmp_path).ok
    assert curate.inspect(rows, Processor()).as_dict() == curate.inspect(rows, tokenizer()).as_dict()


def test_what_is_no_tokenizer(tmp_path, monkeypatch):
    from tokenizers import Tokenizer

    with pytest.raises(TypeError, match="got Tokenizer; wrap it as transformers"):
        curate.inspect(inspected.pairs(2), Tokenizer.from_str(inspected.trained()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="tokenizer: no tokenizer can be loaded from"):
        curate.inspect(inspected.pairs(2), tmp_path / "nothing")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer: no tokenizer can be loaded from"):
        curate.inspect(inspected.pairs(2), tmp_path)


def test_missing_and_empty_values_are_no_error():
    used = tokenizer()
    rows = [
        *inspected.pairs(4),
        {"prompt": None, "chosen": None, "rejected": ""},
        {"prompt": "", "chosen": "", "rejected": "a."},
    ]
    assert curate.inspect(rows, used)["empty"].count == 2
    rows = [*inspected.messages(4), {"prompt": None, "chosen": None, "rejected": []}]
    assert curate.inspect(rows, used)["empty"].count == 1
    assert curate.inspect([{"prompt": "", "completions": []}], used)["empty"].count == 1
    assert curate.inspect([{"prompt": None, "chosen": None, "rejected": None}], used)["empty"].count == 1


@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
def test_tokens_are_those_of_trl(messages):
    """Prompts, responses and the joint between them as DPOTrainer prepares them."""
    from trl.data_utils import _tokenize, common_prefix_length

    used = tokenizer()
    rows = (
        inspected.messages(30) if messages else changed(inspected.pairs(30), response=lambda text: text + "<|im_end|>")
    )
    for at in range(0, 30, 3):
        start = [said("assistant", "    the river.")] if messages else "<|im_end|>"
        rows[at] = {**rows[at], "chosen": start, "prompt": rows[at]["prompt"] if messages else rows[at]["prompt"] + " "}
    lengths = {"chosen": [], "rejected": []}
    apart = 0
    for row in rows:
        prompt = _tokenize(used, row["prompt"], **({"add_generation_prompt": True} if messages else {}))["input_ids"]
        wholes = {side: _tokenize(used, row["prompt"] + row[side])["input_ids"] for side in lengths}
        shared = {side: common_prefix_length(prompt, ids) for side, ids in wholes.items()}
        apart += min(shared.values()) < len(prompt)
        for side, ids in wholes.items():
            lengths[side].append(len(ids) - shared[side])
    found = curate.inspect(rows, used)
    assert found["prefix"].count == apart
    assert {side: found.lengths[side].tolist() for side in lengths} == lengths


REFUSES, LOSES, ENDLESS = "cannot be written as tokens", "lose what the", "lack "
SHIPPED = {
    "qwen2_5": ("<|im_end|>", ""),
    "qwen3": ("<|im_end|>", ""),
    "llama3": ("<|eot_id|>", ""),
    "gemma": ("<end_of_turn>", REFUSES),  # a system's message
    "glm4moe": ("<|endoftext|>", ENDLESS),
    "smolvlm": ("<end_of_utterance>", LOSES),
    "llava_next": ("</s>", REFUSES),  # text that is not a list of parts
}


@pytest.mark.parametrize("name", [*SHIPPED, "nemotron_3_nano", "deepseekv3"])
def test_templates_of_well_known_models(name):
    """As TRL ships them, on clean data with a message of the system."""
    from pathlib import Path

    import trl

    template = Path(trl.__file__).parent.joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    eos, fault = SHIPPED.get(name, ("<|im_end|>" if "nemotron" in name else "<｜end▁of▁sentence｜>", ""))
    used = tokenizer(template, bos="<s>")
    used.add_special_tokens({"eos_token": eos})
    found = curate.inspect(inspected.messages(10), used)
    assert all(what.startswith((fault, ENDLESS)) for what in faults(found)) if fault else faults(found) == {}
    assert bool(faults(found)) == bool(fault)
    # a generation prompt that begins a thought is no prefix of an answer without one
    assert found["prefix"].numbers == ({} if name in SHIPPED else {"template": 10.0})


TOOLS = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool['name'] }} {% endfor %}<|im_end|>\n{% endif %}"
    "{% if mood is defined %}<|im_start|>mood\n{{ mood }}<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize("kind", ["messages", "implicit", "labelled_messages", "lists_of_messages"])
def test_tools_and_options_of_the_template(kind):
    """What rows give the template is in the prompts that are tokenised, and nothing else is."""
    tokenizer = inspected.tokenizer(TOOLS + inspected.CHATML)
    rows = inspected.CLEAN[kind](20)
    plain = curate.inspect(rows, tokenizer)
    given = [{**row, "tools": [{"name": "river river"}], "chat_template_kwargs": {"mood": "slowly"}} for row in rows]
    found = curate.inspect(given, tokenizer)
    tools = "<|im_start|>tools\nriver river <|im_end|>\n<|im_start|>mood\nslowly<|im_end|>\n"
    added = len(tokenizer(tools, add_special_tokens=False)["input_ids"])
    assert found.ok and (found.prompt_lengths - plain.prompt_lengths == added).all()
    as_text = [{**row, "tools": json.dumps(row["tools"])} for row in given]
    assert curate.inspect(as_text, tokenizer).as_dict() == found.as_dict()
    some = curate.inspect(
        [*given[:5], *({**row, "tools": None, "chat_template_kwargs": None} for row in rows[5:])], tokenizer
    )
    assert (some.prompt_lengths == [*found.prompt_lengths[:5], *plain.prompt_lengths[5:]]).all()
    assert (
        curate.inspect(given, tokenizer, columns={"tools": None, "chat_template_kwargs": None}).as_dict()
        == plain.as_dict()
    )


@pytest.mark.parametrize(
    ("column", "value", "kind", "message"),
    [
        ("tools", "no json", TypeError, "tools, row 3: expected a list of tools, each a dict, .* got str 'no json'"),
        ("tools", {"name": "x"}, TypeError, "tools, row 3: expected a list of tools, each a dict"),
        ("tools", ["x"], TypeError, "tools, row 3: expected a list of tools, each a dict"),
        (
            "chat_template_kwargs",
            "mood",
            TypeError,
            "chat_template_kwargs, row 3: expected a dict of .* got str 'mood'",
        ),
        (
            "chat_template_kwargs",
            {"tokenize": True},
            ValueError,
            "chat_template_kwargs, row 3: got 'tokenize', which is",
        ),
    ],
)
def test_wrong_tools_and_options(column, value, kind, message):
    rows = inspected.messages(5)
    rows = [{**row, column: value if at == 3 else None} for at, row in enumerate(rows)]
    with pytest.raises(kind, match=message):
        curate.inspect(rows, inspected.tokenizer())


def test_a_bias_that_only_tokens_show():
    """Responses of as many characters, of which the better take more tokens: words that the tokenizer never saw."""
    rng = random.Random(0)
    known, unknown = "because although ", "zqxjkvzq wvxkqjz "
    rows = [
        {
            "prompt": f"{inspected.sentence(rng)} ({row})",
            "chosen": f" {unknown * 3}x{row:03}.",
            "rejected": f" {known * 3}y{row:03}.",
        }
        for row in range(100)
    ]
    assert len(known) == len(unknown)
    assert curate.inspect(rows).ok
    found = curate.inspect(rows, inspected.tokenizer())
    assert [check.name for check in found.found] == ["length"]
    assert "tokens" in found["length"].what and found["length"].numbers["share"] == 1.0
    assert (
        curate.inspect(
            [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows], inspected.tokenizer()
        )["length"].numbers["share"]
        == 0.0
    )
