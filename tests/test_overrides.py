"""``--set``. What these prevent: an override that changes something else than it names, or nothing."""

import pytest

from hf_shrink.errors import RecipeError, SecurityError
from hf_shrink.overrides import apply
from hf_shrink.yaml_source import parse


def applied(*overrides: str, text: str = "seed: 1\npruning: [{sparsity: 0.5}, {sparsity: 0.6}]\nteacher: null\n"):
    return apply(parse(text, name="r.yaml"), overrides)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=2", ("seed",), 2),
        ("pruning.1.sparsity=1e-1", ("pruning", 1, "sparsity"), 0.1),
        ("pruning.2.sparsity=0.7", ("pruning", 2, "sparsity"), 0.7),
        ("teacher.model=a:b=c", ("teacher", "model"), "a:b=c"),
        ("teacher.freeze=[a, 'no']", ("teacher", "freeze"), ["a", "no"]),
        ("data.revision='1'", ("data", "revision"), "1"),
        ("pruning=null", ("pruning",), None),
        ("losses.0.loss=x", ("losses", 0, "loss"), "x"),
    ],
)
def test_the_named_value_is_set(override: str, path: tuple, value: object):
    here = applied(override).data
    for part in path:
        here = here[part]
    assert here == value
    assert type(here) is type(value)


def test_nothing_else_changes_and_the_source_stays_as_it_was():
    source = parse("a: {b: 1, c: [1, 2]}", name="r")
    changed = apply(source, ["a.c.0=9"])
    assert changed.data == {"a": {"b": 1, "c": [9, 2]}}
    assert source.data == {"a": {"b": 1, "c": [1, 2]}}


def test_the_override_is_the_place_of_what_it_set_and_of_nothing_else():
    """An error about the command line must not point into the file."""
    places = applied("pruning.0={sparsity: 2}").places
    assert str(places["pruning", 0]) == "--set pruning.0={sparsity: 2}"
    assert ("pruning", 0, "sparsity") not in places
    assert str(places["pruning", 1, "sparsity"]) == "r.yaml:2:29"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key.path=value"),
        ("=1", "expected key.path=value"),
        ("a..b=1", "expected key.path=value"),
        (".".join("a" * 33) + "=1", "expected key.path=value"),
        ("seed=", "no value"),
        ("seed.x=1", "seed is 1, which has no keys"),
        ("pruning.x=1", "pruning is a list of 2; expected a position in 0..2"),
        ("pruning.3.sparsity=1", "pruning is a list of 2"),
        ("pruning.-1.sparsity=1", "pruning is a list of 2"),
        ("pruning.__class__=1", "pruning is a list of 2"),
        ("pruning.append.__self__=1", "pruning is a list of 2"),
        ("seed=[1", "not valid YAML"),
        ("teacher={a: 1, a: 2}", "'a' set twice; remove one"),
    ],
)
def test_what_cannot_be_set_is_refused(override: str, message: str):
    with pytest.raises(RecipeError) as caught:
        applied(override)
    assert str(caught.value).startswith("--set ")
    assert message in str(caught.value)


def test_a_path_of_python_names_only_makes_keys():
    """A path that is followed with getattr reaches functions."""
    assert applied("__class__.__init__.__globals__=1").data["__class__"] == {"__init__": {"__globals__": 1}}


def test_a_key_given_twice_is_refused():
    with pytest.raises(RecipeError, match="'seed' is set twice"):
        applied("seed=1", "seed=2")


def test_a_tag_in_a_value_is_refused():
    with pytest.raises(SecurityError):
        applied("seed=!!python/name:os.system")
