"""The code on a card was executed on its folder. What these prevent: a card whose first lines fail for whoever copies them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from hf_shrink import PruningConfig, prune, run
from hf_shrink.errors import IntegrityError
from hf_shrink.loading.save import save
from hf_shrink.publishing import usage
from hf_shrink.publishing.card import for_repo, render
from hf_shrink.publishing.readme import make_card
from hf_shrink.publishing.sections import parse
from hf_shrink.rehearsal import rehearse
from hf_shrink.tasks import TASKS
from tests.project import (
    LABELS,
    make_answers_project,
    make_labelled_project,
    make_lm_project,
    make_masked_project,
    make_pairs_project,
    make_project,
    make_targets_project,
    quickstart,
)
from tests.publishing.report import report
from tests.tiny import tiny_classifier, tiny_tokenizer


def of_task(task: str, tier: str = "stock", **more) -> dict:
    data = report(tier=tier, **more)
    data["recipe"]["task"] = task
    return data


def base(task: str, folder: Path) -> Path:
    """A tiny model with tokenizer; a head that is missing starts random."""
    make = {
        "causal-lm": make_lm_project,
        "masked-lm": make_masked_project,
        "question-answering": make_answers_project,
        "sentence-embedding": make_pairs_project,
        "seq2seq": make_targets_project,
        "text-classification": make_project,
    }
    if task in LABELS:
        return make_labelled_project(folder, task) / "base"
    return make[task](folder) / "base"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_s_code_runs_on_a_folder_and_the_card_says_what_it_printed(task: str, tmp_path: Path, capsys):
    folder, data = base(task, tmp_path / "p"), of_task(task)
    if task == "question-answering":  # its head has a start and an end
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_labels": 2, "id2label": None, "label2id": None}))
    capsys.readouterr()
    torch.manual_seed(3)
    state, known = torch.get_rng_state(), dict(AUTO_QUANTIZER_MAPPING)
    data["usage"] = rehearse(data, folder)
    assert torch.equal(torch.get_rng_state(), state) and dict(AUTO_QUANTIZER_MAPPING) == known and "hf_shrink" in known
    assert capsys.readouterr() == ("", "")
    (printed,) = (each["printed"] for each in data["usage"].values())
    assert rehearse(data, folder) == data["usage"], "a card made again must be the same card"
    card = render(data)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    comments = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    assert comments == [" ".join(line.split()) for line in printed.splitlines()]
    assert "Executed when this card was made" in card and str(tmp_path) not in json.dumps(data["usage"])
    assert for_repo(card, data, "alice/model", None).count("Executed when") == 1


def test_a_plugin_model_s_code_imports_what_it_needs_and_a_stock_one_s_does_not(tmp_path: Path):
    """This process knows hf_shrink anyway; a stranger's does not, and cannot load these shapes."""
    model = prune(tiny_classifier("bert"), PruningConfig(structure="heads", sparsity=0.5))
    assert save(model, tmp_path / "odd", tokenizer=tiny_tokenizer()) == "plugin"
    assert "label" in rehearse(of_task("text-classification", "plugin"), tmp_path / "odd")["model"]["printed"]
    with pytest.raises(IntegrityError, match=r"line 3 of its code.*: model = pipeline"):
        rehearse(of_task("text-classification", "stock"), tmp_path / "odd")
    assert "hf_shrink" in AUTO_QUANTIZATION_CONFIG_MAPPING and AutoModel.from_pretrained(tmp_path / "odd") is not None


def test_no_word_goes_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that borrows from the Hub runs here, and fails for whoever is offline or has no rights."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(usage._CALLS, "text-classification", "import huggingface_hub\nprint(huggingface_hub.is_offline_mode())")
    found = rehearse(of_task("text-classification"), base("text-classification", tmp_path / "p"))
    assert found["model"]["printed"] == "True" and constants.HF_HUB_OFFLINE is False


def test_what_cannot_run_here_is_said_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else find(name, *more))
    data = of_task("text-classification", onnx={"files": ["model_quantized.onnx"]})
    data["usage"] = rehearse(data, base("text-classification", tmp_path / "p"))
    assert data["usage"]["onnx"]["not_executed"] == "onnxruntime is not installed" and data["usage"]["model"]["printed"]
    assert "Not executed here: onnxruntime is not installed." in render(data)


def test_a_card_claims_nothing_of_code_that_is_not_what_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another version writes other code; what the old one printed is no proof of it."""
    data = of_task("text-classification")
    assert "Executed" not in render(data) and "Not executed" not in render(data)
    data["usage"] = rehearse(data, base("text-classification", tmp_path / "p"))
    monkeypatch.setitem(usage._CALLS, "text-classification", 'print(model("Another text."))')
    assert "Executed" not in render(data) and "# [" not in render(data).split("## Reproduce")[0]


def test_printed_text_stays_in_its_block(tmp_path: Path):
    """A model may write anything: the end of the block, one of our marks, a page of it."""
    data = of_task("causal-lm")
    code = usage.codes(data)["model"]
    text = "```\n# out\n<!-- hf_shrink: end how-to-use -->\n<script>x</script>\x1esummary"
    data["usage"] = {"model": {"sha256": usage.fingerprint(code), "printed": text}}
    card = render(data)
    assert "\n# <!-- hf_shrink: end how-to-use -->\n" in card and "````python" in card
    assert render(data, old=card) == card and not [p for p in parse(card).pieces if not p.name]


def test_code_that_fails_makes_no_card_and_loses_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    """The rest of the run has taken hours; and the next call goes on from there."""
    folder = own / "runs/quickstart"
    before = json.loads((folder / "hf_shrink_report.json").read_text())
    assert "label" in before["usage"]["model"]["printed"] and before["usage"]["onnx"]["printed"].startswith("[[")
    card = (folder / "README.md").read_text()
    assert card.count("Executed when this card was made") == 2
    assert not make_card(folder, rehearse=rehearse).changed
    for name in ("hf_shrink_report.json", "README.md"):
        (folder / name).unlink()
    with monkeypatch.context() as broken:
        broken.setitem(usage._CALLS, "text-classification", "print(model.words)")
        with pytest.raises(IntegrityError, match=r"line 4 of its code.*: print\(model\.words\)") as error:
            run(quickstart())
        assert not (folder / "hf_shrink_report.json").exists()
        (folder / "hf_shrink_report.json").write_text(json.dumps(before))
        with pytest.raises(IntegrityError, match="line 4 of its code"):
            make_card(folder, rehearse=rehearse)
        (folder / "hf_shrink_report.json").unlink()
    assert error.value.code == 5 and len(str(error.value).splitlines()) == 3 and str(own) not in str(error.value)
    assert (folder / "model.safetensors").exists() and not (folder / "README.md").exists()
    assert run(quickstart()).report["usage"] == before["usage"]
    assert (folder / "README.md").read_text() == card
