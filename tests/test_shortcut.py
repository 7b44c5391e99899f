"""One-step commands where something goes wrong: nothing is left that looks like a result."""

from pathlib import Path

import pytest

from hf_shrink import shortcut
from hf_shrink.errors import IntegrityError
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
