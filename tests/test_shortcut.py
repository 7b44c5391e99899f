"""One-step commands where something goes wrong: nothing is left that looks like a result."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hf_shrink import graphs, shortcut
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.graphs import export_for_onnx
from hf_shrink.pruning.config import PruningConfig
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
