"""One-step commands where something goes wrong: nothing is left that looks like a result."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hf_shrink import graphs, shortcut
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.graphs import export_for_onnx
from hf_shrink.measurement.values import Measurement, Report
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.recipe import Recipe
from hf_shrink.report import sizes
from hf_shrink.stage_plan import StagePlan
from tests.tiny import tiny_classifier, tiny_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> str:
    tiny_classifier(hidden=64, ffn=128).save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


@pytest.mark.parametrize("step", ["quantize", "prune"])
@pytest.mark.parametrize("error", [IntegrityError("weights differ"), KeyboardInterrupt()], ids=["differs", "interrupted"])
def test_a_model_that_was_not_verified_is_taken_away(
    step: str, error: BaseException, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever finds a whole folder afterwards would serve a model that is known to be another."""

    def fails(folder: Path, *rest: object) -> None:
        assert (folder / "model.safetensors").is_file()
        raise error

    monkeypatch.setattr(shortcut, "verify", fails)
    with pytest.raises(type(error)):
        if step == "quantize":
            shortcut.quantize_model(source, tmp_path / "out", ["bits=8"])
        else:
            shortcut.prune_model(source, tmp_path / "out", PruningConfig(structure="heads", sparsity=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_other_backend_is_named_as_a_command(source: str, tmp_path: Path):
    """The name of a Python function helps nobody at a terminal."""
    with pytest.raises(RecipeError, match="hf-shrink export MODEL FOLDER --onnx"):
        shortcut.quantize_model(source, tmp_path / "out", ["backend=onnx"])
    with pytest.raises(RecipeError, match="hf-shrink quantize MODEL FOLDER"):
        export_for_onnx(Path(source), tmp_path / "out", ["backend=bitsandbytes"])
    assert not (tmp_path / "out").exists()


def test_an_export_takes_the_keys_of_its_section(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``float_graph`` and ``skip_modules`` could be asked for in a recipe alone; rows were 256, whatever the config said."""
    (tmp_path / "texts.txt").write_text("red house\nblue tree\ngreen river\n")
    seen: list[int] = []

    def exported(model: Any, folder: Path, config: Any, *, tokenizer: Any, calibration: Any) -> None:
        assert config.skip_modules == ("layer.0.output.dense",) and config.float_graph and config.mode == "static"
        seen.extend(len(batch["input_ids"]) for batch in calibration)

    monkeypatch.setattr(graphs, "export_onnx", exported)
    words = ["--set", "float_graph=true", "--set", "skip_modules=[layer.0.output.dense]", "--set", "calibration_rows=2"]
    more = ["--mode", "static", "--texts", str(tmp_path / "texts.txt"), "--onnx"]
    done = CliRunner().invoke(app, ["export", source, str(tmp_path / "out"), *words, *more])
    assert seen == [2], done.stderr
    refused = CliRunner().invoke(app, ["export", source, str(tmp_path / "out"), "--uniform", *words])
    assert refused.exit_code == 2 and "--set, --recipe and --texts belong to --onnx" in " ".join(refused.stderr.split())


def test_a_file_of_another_size_than_predicted_is_said(source: str, tmp_path: Path):
    """Bytes on disk are what quantising is for: a layer that quietly stayed in float is seen there first."""
    made = shortcut.quantize_model(source, tmp_path / "out", ["bits=8"])
    assert made.predicted == pytest.approx(made.made.bytes[1], rel=0.01) and made.to_json()["predicted_bytes"] == made.predicted
    assert "predicted" not in printed(made)
    less = dataclasses.replace(made, predicted=round(0.98 * made.made.bytes[1]))
    assert f"predicted {less.predicted:,} bytes of weights, wrote {made.made.bytes[1]:,}" in printed(less)


def printed(made: shortcut.Quantized) -> str:
    console = Console(width=100)
    with console.capture() as caught:
        console.print(made.rich())
    return caught.get()


OFF = "quantized: the plan said 1,000 bytes of weights, 1,011 were written."


@pytest.mark.parametrize(
    ("quantization", "says"), [({"bits": 8}, [OFF]), ({"bits": "auto", "budget": {"bytes": 9}}, [])], ids=str
)
def test_a_report_says_where_a_stage_is_not_as_large_as_planned(quantization: dict[str, Any], says: list[str]):
    """The teacher was made elsewhere, and graphs and ``bits: auto`` are estimates: only what is exact is compared."""
    words = {"task": "text-classification", "model": "m", "output_dir": "o", "data": {"dataset": "d"}}
    recipe = Recipe(version=1, training={"max_steps": 1}, quantization=quantization, **words)
    plans = [("teacher", 500, ""), ("student", 1000, "stages/student"), ("quantized", 1000, "."), ("onnx", 500, "onnx")]
    stages = [StagePlan(name, (), {}, None, size, writes) for name, size, writes in plans]
    found = {"teacher": 2000, "student": 1009, "quantized": 1011, "onnx": 900, "floor": 3}
    reports = [
        Report(name=name, measurements=[Measurement(name="bytes_on_disk", value=size, unit="bytes", setting="*.safetensors")])
        for name, size in found.items()
    ]
    assert sizes(recipe, stages, reports) == says
