"""Every recipe that is shipped parses, plans, and runs."""

from pathlib import Path

import pytest

from hf_shrink import Recipe, run
from hf_shrink.quantization.config import entry_for
from tests.project import overrides_for, project_for

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
ALWAYS = ("quickstart", "causal-lm")  # the tasks and stages of the others have whole runs elsewhere
RUNS = [pytest.param(path, id=path.stem, marks=() if path.stem in ALWAYS else pytest.mark.slow) for path in RECIPES]


def test_there_are_recipes():
    """A moved folder would leave the tests below with nothing to run."""
    assert ROOT / "recipes" / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("path", RUNS)
def test_a_shipped_recipe_runs_two_steps_on_a_tiny_model(path: Path, tmp_path: Path):
    """A key renamed in a room breaks recipes that nobody has run since."""
    shipped = Recipe.from_yaml(path)
    project = project_for(shipped, tmp_path / "project")
    recipe = Recipe.from_yaml(path, overrides=[*overrides_for(shipped, project), f"output_dir={tmp_path / 'run'}"])
    outcome = run(recipe)
    names = [stage["name"] for stage in outcome.report["stages"]]
    last = "shrunk" if any(entry.is_cut_after for entry in recipe.pruning) else "student"
    for stage, backend in (("quantized", "bitsandbytes"), ("onnx", "onnx")):
        last = stage if entry_for(backend, recipe.quantization) else last
        last = "recovered" if last == "quantized" and recipe.recovery is not None else last
    assert names[-1] == last
    assert outcome.report["reload"]["max_difference"] == 0.0
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "hf_shrink_report.json",
        "hf_shrink_recipe.yaml",
    ):
        assert (outcome.folder / name).stat().st_size > 0, name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_writes_to_the_ignored_folder(path: Path):
    """A run would otherwise leave 100 MB in the working tree."""
    assert Recipe.from_yaml(path).output_dir == f"runs/{path.stem}"
