"""Commands that prune, quantise and look at a model: what they write, say and refuse."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from hf_shrink import Recipe, run
from hf_shrink.errors import RecipeError
from hf_shrink.plan import make_plan
from hf_shrink.shortcut import recipe_for
from tests.project import make_project
from tests.test_pruning_runs import LEARNT, recipe, sizes
from tests.warm import hf_shrink


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny project as the current folder."""
    monkeypatch.chdir(make_project(tmp_path / "p", layers=4))


def test_one_command_prunes_a_model_and_another_makes_it_stock():
    """A shortcut that writes what nobody can load, or that writes over what is there, is none."""
    made = hf_shrink("prune", "base", "small", "--structure", "heads", "--sparsity", "0.5", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["tier"] == "plugin" and result["parameters"][1] < result["parameters"][0] and result["max_difference"] == 0.0
    assert hf_shrink("prune", "base", "small", "--structure", "heads", "--sparsity", "0.5").returncode == 2
    stock = hf_shrink("export", "small", "plain", "--uniform", "--json")
    assert stock.returncode == 0, stock.stderr
    with_code = hf_shrink("export", "small", "coded", "--remote-code")
    assert with_code.returncode == 0 and "trust_remote_code" in with_code.stdout, with_code.stderr
    look = hf_shrink("inspect", "small", "--json")
    assert look.returncode == 0 and json.loads(look.stdout)["parts"]


def test_the_shortcut_can_say_the_recipe_that_it_stands_for():
    Path("recipe.yaml").write_text(recipe("  - {sparsity: 0.5}").to_yaml())
    words = ["--structure", "ffn", "--sparsity", "0.5", "--criterion", "wanda", "--recipe", "recipe.yaml"]
    made = hf_shrink("prune", "out/stages/teacher", "small", *words, "--save-recipe", "new.yaml")
    assert made.returncode == 4, "there is no such model yet"
    assert not Path("new.yaml").exists() and not Path("small").exists()
    run(recipe("  - {sparsity: 0.5}"))
    lost = hf_shrink("prune", "out/stages/teacher", "small", *words, "--save-recipe", "nowhere/new.yaml")
    assert lost.returncode == 4 and "cannot be written there" in lost.stderr, lost.stderr
    assert not Path("small").exists(), "found before the model is pruned, not after"
    made = hf_shrink("prune", "out/stages/teacher", "small", *words, "--save-recipe", "new.yaml")
    assert made.returncode == 0, made.stderr
    again = Recipe.from_yaml("new.yaml")
    assert again.pruning[0].structure == "ffn" and again.pruning[0].criterion == "wanda" and again.teacher is None
    small = AutoModelForSequenceClassification.from_pretrained("small")
    assert sizes(make_plan(again))["student"] == small.num_parameters(), "the recipe prunes what the shortcut pruned"
    with pytest.raises(RecipeError, match="model: lies in output_dir 'out', which this run writes"):
        make_plan(again.model_copy(update={"output_dir": "out"}))
    words = ["--structure", "heads", "--sparsity", "0.5", "--recipe", "recipe.yaml", "--save-recipe", "even.yaml"]
    made = hf_shrink("prune", "out/stages/teacher", "even", *words)
    assert made.returncode == 0, f"magnitude reads no data, and the recipe is asked for none: {made.stderr}"
    assert Recipe.from_yaml("even.yaml").output_dir == "even-run"
    given = recipe("  - {sparsity: 0.5}", "cache.folder=cache", "publishing.push_to=me/model")
    known = recipe_for(given, again.pruning[0], "owner/model", Path("x"), "v2")
    assert (known.cache, known.publishing.push_to, known.revision) == (None, None, "v2"), "nothing of the other run's"


def test_sensitivity_prints_a_row_for_each_mask_and_fraction():
    Path("recipe.yaml").write_text(recipe("  - {structure: ffn, sparsity: 0.5, end_step: 2}").to_yaml())
    refused = hf_shrink("sensitivity", "recipe.yaml", "--json")
    assert refused.returncode == 3 and "Run the recipe first" in refused.stderr
    learnt = recipe("  - {structure: ffn, sparsity: 0.5, end_step: 2}", LEARNT)
    run(learnt, overwrite=True)
    Path("recipe.yaml").write_text(learnt.to_yaml())
    found = hf_shrink("sensitivity", "recipe.yaml", "--rows", "16", "--fraction", "0.5", "--json")
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["points"]) == 4


def test_one_command_quantises_a_model_and_reports_each_layer():
    """A report that says int8 of layers that stay in float, or bytes that no file has, is worse than none."""
    made = hf_shrink("quantize", "base", "small", "--bits", "8", "--report", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["tier"] == "stock" and result["max_difference"] == 0.0 and result["bytes"][1] < result["bytes"][0]
    schemes = [layer["scheme"] for layer in result["layers"]]
    assert schemes.count("uniform int8, a scale a row") == 24 and "float32 (pooler)" in schemes
    size = Path("small/model.safetensors").stat().st_size
    assert sum(layer["bytes"][1] for layer in result["layers"]) < size == result["bytes"][1]
    again = hf_shrink("quantize", "small", "smaller")
    assert again.returncode in (2, 3) and "quantised" in again.stderr and not Path("smaller").exists()
    four = hf_shrink("quantize", "base", "four", "--set", "bits=4", "--json")  # the default is no word of the user's
    assert four.returncode == 0 and json.loads(four.stdout)["bytes"][1] < size, four.stderr
    typo = hf_shrink("quantize", "base", "other", "--bits", "4", "--set", "quant_typ=nf4")
    assert typo.returncode == 2 and "Did you mean 'quant_type'" in typo.stderr and not Path("other").exists()
