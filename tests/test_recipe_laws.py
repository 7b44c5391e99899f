"""Any text, any recipe: what is written reads back, and damage is refused at its line."""

import re
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_shrink.errors import RecipeError, SecurityError, ShrinkError
from hf_shrink.recipe import STARTER, Recipe
from tests.test_recipe import MINIMAL


def test_digest_ignores_how_a_recipe_is_written_and_nothing_else():
    one = Recipe.from_text(MINIMAL)
    other = Recipe.from_text("seed: 0  # the default\n" + MINIMAL + "measurement: {batch_sizes: [1, 32]}\n")
    assert one.digest() == other.digest()
    assert len(one.digest()) == 64
    assert one.digest() != Recipe.from_text(MINIMAL, overrides=["seed=1"]).digest()
    assert one.difference(other) == ""
    assert one.changed_keys(other) == []


def test_difference_names_what_changed():
    before = Recipe.from_text(MINIMAL + "pruning: [{sparsity: 0.5, end_step: 100}]\n")
    now = Recipe.from_text(MINIMAL + "pruning: [{sparsity: 0.5, end_step: 200}]\nquantization: {bits: 4}\n")
    assert before.changed_keys(now)[0] == "pruning.0.end_step"
    assert {key.split(".")[0] for key in before.changed_keys(now)} == {"pruning", "quantization"}
    lines = before.difference(now).splitlines()
    assert {"-  end_step: 100", "+  end_step: 200", "+  bits: 4"} <= set(lines)


_NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12).filter(
    lambda text: "${" not in text and "{{" not in text and not text.startswith("package:")
)


_FRACTION = st.floats(0, 1, exclude_max=True)


_ENTRIES = st.fixed_dictionaries(
    {"sparsity": _FRACTION, "exclude_modules": st.lists(_NAMES, min_size=1, max_size=2)},
    optional={
        "begin_step": st.integers(0, 10),
        "end_step": st.none() | st.integers(11, 10**6),
        "schedule": st.sampled_from(["cubic", "linear", "exponential"]),
        "interval": st.integers(1, 100),
        "target_modules": st.lists(_NAMES, max_size=3),
    },
)


_LOSSES = st.fixed_dictionaries(
    {}, optional={"temperature": st.floats(1e-9, 1e9), "weight": st.floats(0, 1e300), "loss": st.just("reverse_kl")}
)


_SECTIONS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "task": st.just("text-classification"),
        "model": _NAMES,
        "output_dir": _NAMES,
        "data": st.fixed_dictionaries({"dataset": _NAMES}, optional={"text_column": st.text("1e-.0oxny~", max_size=6)}),
        "teacher": st.fixed_dictionaries({"model": _NAMES}),
        "distillation": st.fixed_dictionaries({"losses": st.lists(_LOSSES, min_size=1, max_size=3)}),
    },
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "student": st.fixed_dictionaries({}, optional={"layers": st.integers(1, 20) | st.lists(st.integers(), max_size=3)}),
        "pruning": st.lists(_ENTRIES, max_size=3),
        "training": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.floats(1e-12, 1.0), "max_steps": st.integers(-1, 10**9), "run_name": _NAMES}
        ),
        "quantization": st.sampled_from([None, {"bits": 4, "quant_type": "fp4"}, {"bits": 16, "dtype": "bfloat16"}]),
        "publishing": st.fixed_dictionaries({}, optional={"tags": st.lists(_NAMES, max_size=3), "license": st.none() | _NAMES}),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_SECTIONS)
def test_a_recipe_survives_being_written_and_read(sections: dict):
    """The recipe beside the model has to give the same model again."""
    recipe = Recipe(**sections)
    again = Recipe.from_text(recipe.to_yaml())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.to_yaml() == recipe.to_yaml()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(STARTER) - 1), st.text("{}[]:,-?&*!|>%@#'\" \n\t0a~.", max_size=4), st.integers(0, 5))
def test_a_damaged_recipe_is_read_or_refused_at_a_line_that_exists(at: int, put: str, cut: int):
    """No error of another library, and no line number beyond the file."""
    text = STARTER[:at] + put + STARTER[at + cut :]
    try:
        Recipe.from_text(text)
    except ShrinkError as error:
        for line in str(error).splitlines():
            if not line.startswith("..."):
                number = int(re.match(r"recipe.yaml:(\d+):\d+: ", line)[1])
                assert 1 <= number <= len(text.splitlines()) + 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_a_recipe_raise_nothing_but_our_errors(tail: bytes):
    with suppress(RecipeError, SecurityError):
        Recipe.from_text((MINIMAL.encode() + tail).decode("utf-8", errors="surrogateescape"))
