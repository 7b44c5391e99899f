"""YAML as the recipe reads it. What these prevent: a value read as something else, code run by a tag, and a file that hangs."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shrink.errors import RecipeError, SecurityError
from hf_shrink.yaml_core import resolve, write
from hf_shrink.yaml_source import MAX_BYTES, decode, parse


def read(text: str):
    return parse(text, name="recipe.yaml").data


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0o17", 15),
        ("017", 17),
        ("2026-11-22", "2026-11-22"),
        ("0x1F", 31),
        (".5", 0.5),
        ("~", None),
        ("True", True),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(written: str, meant: object):
    """YAML 1.1 turns a learning rate into text, a country code into false and a time into 750 seconds, all in silence."""
    value = read(f"key: {written}")["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_infinities_and_nan_are_floats_for_the_configs_to_refuse():
    values = read("[.inf, -.INF, .nan]")
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"recipe.yaml:1:6: not valid YAML: "),
        ("a: 1\nb:\n\tc: 2", r"recipe.yaml:3:1: not valid YAML: .*'\\t'"),
        ("\ufeffa: 1", r"recipe.yaml:1:1: not valid YAML: .*byte order mark"),
        ("a: 1\nb: x\x00y", r"recipe.yaml:2:5: not valid YAML: character U\+0000"),
        ("", r"recipe.yaml:1:1: not valid YAML: the text is empty"),
        ("# only a comment\n", r"recipe.yaml:1:1: not valid YAML: the text is empty"),
        ("a: 1\n---\nb: 2", r"recipe.yaml:2:1: .*second document"),
        ('a: "\\UFFFFFFFF"', r"not valid YAML: a number in an escape"),
        ("%YAML 1.1\n---\na: 1", r"directives"),
        ("a: *nowhere", r"recipe.yaml:1:4: .*'nowhere'"),
        ("a: &a [*a]", r"recipe.yaml:1:8: .*no complete anchor"),
        ("<<: {a: 1}", r"merge keys"),
        ("[a]: 1", r"a key must be plain text"),
        ("a: !!int 3", r"recipe.yaml:1:4: tag '!!int' is not read"),
        ("a: " + "9" * 401, r"recipe.yaml:1:4: a number of 401 characters; at most 400"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_at_its_line(text: str, message: str):
    """PyYAML's own errors have up to ten lines, and for some of these it raises no YAML error at all."""
    with pytest.raises(RecipeError, match=message) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!include secrets.yaml",
        "!env HOME",
        "!<x> 1",
        "! 1",
    ],
)
@pytest.mark.parametrize("place", ["a: {}", "{}: a", "- {}", "{}"])
def test_a_tag_is_refused_wherever_it_stands(tag: str, place: str):
    """A loader that constructs objects would run code before any key is checked."""
    with pytest.raises(SecurityError, match=r"recipe.yaml:1:\d+: tag "):
        read(place.format(tag))


def test_duplicate_keys_name_both_lines_and_the_path():
    """PyYAML keeps the last one: the first value is lost without a word."""
    source = parse("a: 1\np:\n- sparsity: 0.1\n  x: 1\n  sparsity: 0.2\n", name="r")
    assert [(str(place), message) for place, message in source.problems] == [
        ("r:5:3", "p.0.sparsity: 'sparsity' set twice (lines 3 and 5); remove one.")
    ]


@pytest.mark.parametrize("key", ["1", "null", "1.5", "true"])
def test_a_key_that_is_no_text_is_a_problem(key: str):
    assert f"key {key!r} is not text" in parse(f"{key}: a", name="r").problems[0][1]


def test_places_count_lines_and_columns_from_one():
    source = parse("a: 1\nb:\n  c: [x, {d: y}]\n", name="r")
    assert {path: str(place) for path, place in source.places.items()} == {
        (): "r:1:1",
        ("a",): "r:1:1",
        ("b",): "r:2:1",
        ("b", "c"): "r:3:3",
        ("b", "c", 0): "r:3:7",
        ("b", "c", 1): "r:3:10",
        ("b", "c", 1, "d"): "r:3:11",
    }


def test_aliases_are_copies():
    """With a shared list, ``--set`` on one entry would change another."""
    data = read("a: &x {k: [1]}\nb: *x\n")
    data["b"]["k"].append(2)
    assert data["a"] == {"k": [1]}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_depth_is_limited_also_through_aliases():
    """A few thousand brackets end Python's recursion, or the process itself with a parser in C."""
    assert json.dumps(read(nested(32))) == nested(32)
    with pytest.raises(RecipeError, match=r"recipe.yaml:1:33: nested deeper than 32 levels"):
        read(nested(33))
    with pytest.raises(RecipeError, match="nested deeper than 32 levels"):
        read(f"a: &x {nested(20)}\nb: " + "[" * 15 + "*x" + "]" * 15)


def test_nodes_are_limited_and_counted_as_if_aliases_were_written_out():
    """Nine lines of aliases stand for a billion nodes."""
    assert len(read("[" + "x," * 9_999 + "]")) == 9_999
    with pytest.raises(RecipeError, match="more than 10000 nodes"):
        read("[" + "x," * 10_000 + "]")
    with pytest.raises(RecipeError, match="more than 10000 nodes"):
        read("a: &x [" + "1," * 99 + "]\nb: [" + "*x," * 100 + "]")


def test_size_is_limited_in_bytes():
    read("a: " + "x" * (MAX_BYTES - 3))
    with pytest.raises(RecipeError, match=r"262145 bytes; at most 262144 \(256 KiB\)"):
        read("a: " + "x" * (MAX_BYTES - 2))
    with pytest.raises(RecipeError, match="256 KiB"):
        read("a: " + "ä" * (MAX_BYTES // 2))


_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        _LAUGHS,
        "[" * 200_000,
        "{" * 200_000,
        "- " * 100_000,
        "? " * 100_000,
        "- a\n" * 60_000,
        "[[]," * 60_000,
        "!" * 262_000,
        "{" + "a: 1, " * 43_000 + "}",
        "%TAG !a! b\n" * 20_000,
        ": \n" * 80_000,
        "&a " * 80_000,
        "!<" + "%41" * 80_000 + ">",
    ],
    ids=lambda text: repr(text[:10]),
)
def test_hostile_texts_are_refused_in_moments(text: str):
    """A limit that is checked after the work is done hangs all the same: none of these takes a second on an idle core."""
    with pytest.raises((RecipeError, SecurityError)):
        read(text)


def test_a_byte_that_is_no_utf8_is_named_with_its_place():
    with pytest.raises(RecipeError, match=r"r:2:4: not valid YAML: byte 0xff; save the file as UTF-8"):
        decode(b"a: 1\nb: \xff", name="r")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text("[]{}:,-?&*!|>%@`'\"#\\ \n\ta1~<", max_size=80).map(str.encode))
def test_any_bytes_give_plain_data_or_one_of_our_errors(raw: bytes):
    try:
        data = read(decode(raw, name="r"))
    except (RecipeError, SecurityError) as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert_plain(data)


def assert_plain(data: object) -> None:
    if isinstance(data, dict):
        assert all(type(key) is str for key in data)
    for inner in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        assert_plain(inner)
    assert type(data) in {dict, list, str, int, float, bool, type(None)}


_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
_TRAPS = st.sampled_from(
    ["1e-4", "0o17", "no", "12:30", "1_000", ".5", "~", "", "<<", "=", "2026-11-22", "0x1F", "1.", " a", "a\n\nb "]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT | _TRAPS
_PLAIN = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT | _TRAPS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(_PLAIN)
def test_what_is_written_reads_back_the_same(data: object):
    """PyYAML writes the text '1e-4' without quotes, as YAML 1.1 takes it for text: read back it would be a number."""
    assert repr(read(write(data))) == repr(data)


@given(st.text("0123456789+-.eExXoO_:~nNuUlL", max_size=12))
def test_text_that_resolves_to_a_number_is_quoted(text: str):
    assert read(write([text])) == [text]


def test_an_integer_keeps_every_digit_and_a_float_its_value():
    assert resolve(str(2**80)) == 2**80
    assert resolve("0.1") == 0.1
    assert resolve("1e400") == math.inf
