import random
from collections import Counter

import pytest

from prefuse.demo.pairs import Documented, make_pairs, split, stdlib_functions


def test_functions_are_found_wherever_they_stand(library):
    found = {function.prompt: function.summary for function in stdlib_functions(library)}
    assert found == {
        "box.Box.open_lid(self, force=1, *, slowly=False)": "Open the lid of the box with some force.",
        "box.Box.wait_for_content(self)": "Wait until there is content in the box.",
        "box.nested_in_branch(x)": "Found although it stands in a branch of an if.",
        "latin.caf(x)": "Serve a café to every single guest.",
    }


def test_a_folder_without_functions_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="root: no documented Python function"):
        stdlib_functions(tmp_path)


def test_this_pythons_library_is_enough():
    functions = stdlib_functions()
    assert len(functions) > 2000
    assert len({function.summary.lower() for function in functions}) == len(functions)
    assert not any("site-packages" in function.module for function in functions)


def documented(count):
    rng = random.Random(0)
    return [
        Documented(f"module{index % 40}", f"module{index % 40}.f{index}()", f"{index} " + "word " * rng.randint(4, 20))
        for index in range(count)
    ]


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize("count", [3, 63, 64, 65, 300])
def test_every_docstring_has_every_role_once(count, responses):
    functions = documented(count)
    pairs = make_pairs(functions, seed=1, responses=responses)
    own = {function.prompt: function.summary for function in functions}
    assert all(pair.responses[0] == own[pair.prompt] for pair in pairs)
    assert all(len(set(pair.responses)) == responses for pair in pairs)
    for role in range(responses):
        assert Counter(pair.responses[role] for pair in pairs) == Counter(own.values())


def test_rejected_is_of_like_length():
    pairs = make_pairs(documented(640), seed=0)
    differences = [
        abs(len(chosen.split()) - len(rejected.split())) for chosen, rejected in (p.responses for p in pairs)
    ]
    assert sum(differences) / len(differences) < 2


def test_too_few_functions():
    with pytest.raises(ValueError, match="functions: expected at least 2, got 1"):
        make_pairs(documented(1), seed=0)


def test_held_out_functions_are_not_trained_on():
    functions = documented(400)
    training, unseen, of_unseen_modules = split(functions, 0.3)
    assert sorted(map(repr, training + unseen + of_unseen_modules)) == sorted(map(repr, functions))
    assert {one.module for one in of_unseen_modules}.isdisjoint(one.module for one in training + unseen)
    assert {one.module for one in unseen} <= {one.module for one in training}
    assert min(len(training), len(unseen), len(of_unseen_modules)) > 40
