"""The recipe as a whole. What these prevent: a typo that is ignored, a problem found late, a saved recipe of another run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_shrink.errors import RecipeError, SecurityError
from hf_shrink.recipe import STARTER, Recipe

MINIMAL = """\
version: 1
task: text-classification
model: org/base
output_dir: runs/x
data: {dataset: org/reviews}
"""


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(MINIMAL + text, overrides=overrides)
    return str(caught.value)


def test_the_minimal_recipe_has_the_defaults_of_its_sections():
    recipe = Recipe.from_text(MINIMAL)
    assert (recipe.seed, recipe.teacher, recipe.pruning, recipe.training) == (0, None, (), {})
    assert recipe.data.train_split == "train"
    assert recipe.measurement.batch_sizes == (1, 32)


def test_every_problem_is_told_at_once_each_at_its_line():
    """One problem a run makes a recipe with five mistakes take five runs."""
    text = (
        "pruning:\n"  # line 6
        "- sparcity: 0.5\n"
        "  sparsity: 1.0\n"
        "teecher: {}\n"
        "training: {learning_rate: 1_000, output_dir: x}\n"
        "seed: 1\n"
        "seed: 2\n"
        "student: {start: teacher}\n"
    )
    lines = refusal(text).splitlines()
    assert [re.match(r"recipe.yaml:(\d+:\d+): ([\w.]+): ", line).groups() for line in lines] == [
        ("7:3", "pruning.0.sparcity"),
        ("8:3", "pruning.0.sparsity"),
        ("9:1", "teecher"),
        ("10:12", "training.learning_rate"),
        ("10:34", "training.output_dir"),
        ("12:1", "seed"),
        ("13:11", "student.start"),
    ]
    assert "Did you mean 'sparsity'?" in lines[0]
    assert "Did you mean 'teacher'?" in lines[2]
    assert "expected float, got string '1_000'" in lines[3]
    assert "'seed' set twice (lines 11 and 12)" in lines[5]


@pytest.mark.parametrize("value", ["1.0", "-0.1", "1.5", ".nan", ".inf", '"0.5"', "true"])
def test_a_sparsity_outside_its_range_is_refused(value: str):
    """A layer pruned to nothing trains on without an error."""
    assert "6:12: pruning.0.sparsity: must be a number in [0, 1)" in refusal(f"pruning: [{{sparsity: {value}}}]")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("alpha: 1.5", "distillation.alpha: must be a number in [0, 1], got 1.5"),
        ("alpha: -0.1", "distillation.alpha: must be a number in [0, 1], got -0.1"),
        ("alpha: .nan", "distillation.alpha: must be a number in [0, 1], got nan"),
        ("losses: [{temperature: 0}]", "distillation.losses.0.temperature: must be a number above 0, got 0"),
        ("losses: [{temperature: .nan}]", "distillation.losses.0.temperature: must be a number above 0, got nan"),
        ("losses: []", "distillation.losses: must not be empty"),
        ("losses: [{loss: forward_k}]", "loss: unknown name 'forward_k'. Did you mean 'forward_kl'?"),
    ],
)
def test_distillation_outside_its_ranges_is_refused(loss: str, message: str):
    """A temperature of zero is a NaN loss, logged as 0.0."""
    assert message in refusal(
        f"teacher: {{model: t}}\ndistillation: {{losses: [{{}}], {loss}}}".replace("losses: [{}], losses", "losses")
    )


@pytest.mark.parametrize("window", ["begin_step: 500, end_step: 500", "begin_step: 600, end_step: 500"])
def test_a_schedule_that_never_fires_is_refused(window: str):
    assert "pruning.0: schedule never fires" in refusal(f"pruning: [{{sparsity: 0.5, {window}}}]")
    assert "begin_step: must be a whole number of at least 0" in refusal("pruning: [{sparsity: 0.5, begin_step: -1}]")


def test_a_field_of_either_type_has_one_problem():
    """Pydantic reports a union once a member, with names of its own in the path."""
    line = refusal("student: {layers: six}")
    assert line == "recipe.yaml:6:11: student.layers: must be a whole number or a list, got 'six'"
    line = refusal("student: {layers: [0, b]}")
    assert line == "recipe.yaml:6:23: student.layers.1: must be a whole number, got 'b'"


@pytest.mark.parametrize("text", ["- a", "text", "3"])
def test_a_recipe_is_a_mapping(text: str):
    with pytest.raises(RecipeError, match=r"recipe.yaml:1:1: not valid YAML for a recipe"):
        Recipe.from_text(text)


def test_a_tag_keeps_its_exit_code():
    with pytest.raises(SecurityError) as caught:
        Recipe.from_text(MINIMAL + "seed: !!python/name:os.system\n")
    assert caught.value.code == 6


def test_at_most_twenty_problems_are_listed():
    lines = refusal("".join(f"key{i}: 1\n" for i in range(50))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and at least 30 more problems."


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "".join(f"datase{i}: 1\n" for i in range(4900)),
        "training:\n" + "".join(f" learning_rat{i}: 1\n" for i in range(4900)),
        "pruning:\n" + "- {sparcity: 1}\n" * 2400,
        "pruning:\n" + "- {sparsity: 0.1, target_modules: [a]}\n" * 1400,
        "distillation: {losses: [" + "{loss: forward_k}," * 2400 + "]}",
    ],
    ids=lambda text: text[:12],
)
def test_thousands_of_problems_take_moments(text: str):
    assert len(refusal(text)) < 9000


def test_what_a_terminal_would_act_on_is_escaped():
    message = refusal('"\\e[31m\\n": 1')
    assert message.isprintable()
    assert message.startswith("recipe.yaml:6:1: ")


def test_reading_a_file_names_it_without_its_folder(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL + "sede: 1\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(path)
    assert str(caught.value).startswith("mine.yaml:6:1: sede: unknown key 'sede'. Did you mean 'seed'?")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.yaml", "none.yaml: no such file"), ("", "not a regular file"), ("x" * 5000, "File name too long")],
)
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, path: str, message: str):
    """Opening a pipe would wait for ever, and /dev/zero never ends."""
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(tmp_path / path)
    with pytest.raises(RecipeError, match="not a regular file"):
        Recipe.from_yaml("/dev/zero")


def test_a_file_above_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(RecipeError, match="256 KiB"):
        Recipe.from_yaml(path)


def test_a_file_reads_as_its_text(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(STARTER, encoding="utf-8")
    assert Recipe.from_yaml(path) == Recipe.from_text(STARTER)


def test_a_recipe_built_in_python_is_checked_as_strictly():
    sections = {"version": 1, "task": "text-classification", "model": "m", "output_dir": "o", "data": {"dataset": "d"}}
    assert Recipe(**sections) == Recipe.from_text(MINIMAL, overrides=["model=m", "output_dir=o", "data.dataset=d"])
    with pytest.raises(RecipeError, match=r"training.hub_token: not set here"):
        Recipe(**sections, training={"hub_token": "secret"})


def test_the_starter_is_a_whole_recipe():
    """`init` must not write a file that `run` refuses."""
    recipe = Recipe.from_text(STARTER)
    assert recipe.teacher is not None
    assert recipe.training["learning_rate"] == 5e-5


def test_importing_it_and_its_schema_leave_torch_alone():
    """`hf-shrink schema` and `--help` would take seconds."""
    code = "import sys; from hf_shrink.recipe import Recipe; Recipe.json_schema(); Recipe.reference_markdown(); "
    code += "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_schema_explains_every_key():
    """An editor shows these texts; the README's reference is made of them."""
    schema = Recipe.json_schema()
    for name, section in {"Recipe": schema, **schema["$defs"]}.items():
        for key, value in section["properties"].items():
            inner = re.findall(r"#/\$defs/(\w+)", str(value))
            described = value.get("description") or (inner and schema["$defs"][inner[0]].get("description"))
            assert described, f"{name}.{key}"


_LINES = STARTER.splitlines()
