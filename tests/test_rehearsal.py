"""The code on a card was executed on its folder. What these prevent: a card whose first lines fail for whoever copies them."""

import importlib.util
import json
import random
import re
from pathlib import Path

import numpy
import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    PreTrainedModel,
    dynamic_module_utils,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

import hf_shrink.report
from hf_shrink import PruningConfig, prune, run
from hf_shrink.errors import IntegrityError, SecurityError
from hf_shrink.loading.save import save
from hf_shrink.publishing import usage
from hf_shrink.publishing.card import for_repo, render
from hf_shrink.publishing.push import with_card
from hf_shrink.publishing.readme import make_card
from hf_shrink.publishing.sections import parse
from hf_shrink.publishing.selection import REPORT, select
from hf_shrink.publishing.target import Target
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
from tests.tiny import VOCABULARY, tiny_classifier, tiny_config, tiny_lm_tokenizer, tiny_tokenizer


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
    failed = rehearse(of_task("text-classification", "stock"), tmp_path / "odd")
    with pytest.raises(IntegrityError, match=r"its code .* at line 3: model = pipeline"):
        usage.check_rehearsed(failed)
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


def test_code_that_comes_with_a_model_is_refused_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal transformers asks, and a y runs what a stranger wrote; on another one it waits for 15 seconds."""
    named = {"AutoConfig": "odd.C", "AutoModelForSequenceClassification": "odd.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": named}))
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / REPORT).write_text(json.dumps(of_task("text-classification")))
    with pytest.raises(SecurityError, match="code from its own folder"):
        make_card(tmp_path, rehearse=rehearse)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "README.md").exists()
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "attn_implementation": "them/kernel"}))
    with pytest.raises(SecurityError, match="them/kernel"):
        rehearse(of_task("text-classification"), tmp_path)


@pytest.mark.parametrize("name", ["run\U0001f600", "a\"b'c{x}\\n", "rün"])
def test_any_name_of_a_folder_will_do(name: str, tmp_path: Path):
    """A run whose last stage cannot read the path of its own folder."""
    assert "printed" in rehearse(of_task("text-classification"), base("text-classification", tmp_path / name))["model"]


@pytest.mark.parametrize(("task", "positions"), [("causal-lm", 32), ("causal-lm", 12), ("seq2seq", 12)])
def test_a_model_of_few_positions_is_asked_for_what_fits(task: str, positions: int, tmp_path: Path):
    """The code would run off the end of the model's positions, and a sound model get neither card nor report."""
    if task == "causal-lm":
        few = tiny_config("gpt2")
        few.n_positions, few.eos_token_id = positions, None
        model: PreTrainedModel = GPT2LMHeadModel(few)
        tokenizer = tiny_lm_tokenizer()
    else:
        sizes = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
        given = {"vocab_size": len(VOCABULARY), "max_position_embeddings": positions, "forced_eos_token_id": None}
        model, tokenizer = BartForConditionalGeneration(BartConfig(d_model=8, **sizes, **ids, **given)), tiny_tokenizer()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    told = rehearse(of_task(task, positions=positions), tmp_path)["model"]
    assert "printed" in told and "failed" in rehearse(of_task(task), tmp_path)["model"], "and more would not fit"
    for room in range(12, 200):
        code = usage.codes(of_task("causal-lm", positions=room))["model"]
        text, most = re.findall(r'model\("(.*)", max_new_tokens=(\d+)\)', code)[0]
        assert len(text) + 2 + int(most) <= room, "even with a token for each letter"


def test_random_numbers_of_python_and_numpy_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is drawn after a run would depend on whether its card was made in this process."""
    code = "import random, numpy\nprint(random.random(), numpy.random.rand())\nraise KeyError('x')"
    monkeypatch.setitem(usage._CALLS, "text-classification", code)
    random.seed(1)
    numpy.random.seed(1)
    expected = random.Random(1).random(), numpy.random.RandomState(1).rand()
    assert (
        "KeyError" in rehearse(of_task("text-classification"), base("text-classification", tmp_path / "p"))["model"]["failed"]
    )
    assert (random.random(), numpy.random.rand()) == expected


def test_a_machine_that_is_too_small_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch has no error of its own for a CPU without memory, and exit code 5 sends people after a file that is whole."""
    monkeypatch.setitem(usage._CALLS, "text-classification", "import torch\ntorch.empty(2**48)")
    told = rehearse(of_task("text-classification"), base("text-classification", tmp_path / "p"))["model"]
    assert "memory" in told["not_executed"]


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({"id2label": {"0": "bitsandbytes"}}, False),
        ({"quantization_config": {"quant_method": "hf_shrink", "bitsandbytes": None}}, False),
        ({"quantization_config": {"quant_method": "hf_shrink", "bitsandbytes": {"load_in_8bit": True}}}, True),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, True),
    ],
)
def test_bitsandbytes_is_missing_only_where_the_weights_need_it(
    config: dict, needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A label of that name, and a float model's card says that nobody ran its code."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ("not_executed" in rehearse(of_task("text-classification"), tmp_path)["model"]) == needed


def test_a_card_claims_nothing_of_another_model_than_the_code_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What an earlier model printed, or another machine, stands on the card as if this one had."""
    folder, data = base("text-classification", tmp_path / "p"), of_task("text-classification")
    data["usage"] = rehearse(data, folder)
    (folder / REPORT).write_text(json.dumps(data))
    make_card(folder)
    card = (folder / "README.md").read_text()
    assert data["usage"]["model"]["printed"].splitlines()[0] in card
    tiny_classifier("bert", seed=5, hidden=64, initializer_range=3.0).save_pretrained(folder)
    make_card(folder)
    assert "Executed when" not in (folder / "README.md").read_text()
    (folder / "README.md").write_text(card)  # as somebody would publish it who trained on
    pushed = with_card(select(folder), Target("alice/model"))
    assert b"Executed when" not in next(each for each in pushed.uploads if each.name == "README.md").read()
    fresh = rehearse(data, folder)["model"]["printed"]
    assert make_card(folder, rehearse=rehearse).changed and fresh != data["usage"]["model"]["printed"]
    assert f"# {fresh.splitlines()[0]}" in (folder / "README.md").read_text()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else find(name, *more))
    make_card(folder, rehearse=rehearse)
    assert "Not executed here: transformers is not installed." in (folder / "README.md").read_text()


def test_the_card_says_that_the_graph_was_not_downloaded():
    """The code that a stranger copies opens what `hf_hub_download` gives; the code that ran opened a file."""
    data = of_task("text-classification", onnx={"files": ["model_quantized.onnx"]})
    data["usage"] = {piece: {"sha256": usage.fingerprint(code), "printed": "x"} for piece, code in usage.codes(data).items()}
    assert usage.executed(data, "onnx", "a/b")[1].count("its graph in that of the download") == 1
    assert "download" not in usage.executed(data, "onnx")[1] + usage.executed(data, "model", "a/b")[1]


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
        with pytest.raises(IntegrityError, match=r"its code .* at line 4: print\(model\.words\)") as error:
            run(quickstart())
        failed = json.loads((folder / REPORT).read_text())["usage"]["model"]
        assert failed["failed"].startswith("line 4: print(model.words)\nAttributeError") and "printed" not in failed
        assert failed["model"] == before["usage"]["model"]["model"] and (folder / "report.html").is_file()
        assert not (folder / "README.md").exists()
        with pytest.raises(IntegrityError, match="line 4: print"):
            make_card(folder, rehearse=rehearse)
    assert error.value.code == 5 and len(str(error.value).splitlines()) == 3 and str(own) not in str(error.value)
    assert (folder / "model.safetensors").exists() and not (folder / "README.md").exists()
    assert run(quickstart()).report["usage"] == before["usage"]
    assert (folder / "README.md").read_text() == card
    asked: list[Path] = []
    monkeypatch.setattr(hf_shrink.report, "rehearse", lambda *given: asked.append(given[1]) or rehearse(*given))
    run(quickstart())
    assert not asked, "done is done"
    (folder / "README.md").unlink()
    run(quickstart())
    assert len(asked) == 1 and (folder / "README.md").read_text() == card, "a card that says today, of today"
