"""Texts that become texts, from recipe to card. What these prevent: labels that count where they are padding, targets in a
vocabulary that was cut without them, and numbers of texts that were not written by the model."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_shrink import Recipe, run
from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.plan import make_plan
from hf_shrink.sensitivity import measure_sensitivity
from tests.project import make_targets_project
from tests.tiny import VOCABULARY, tiny_tokenizer

RECIPE = """
version: 1
task: seq2seq
model: base
output_dir: runs/written
data: {dataset: data, max_length: 32, max_target_length: 8, prefix: "the "}
student: {start: teacher, layers: 1}
teacher:
  model: base
  training: {max_steps: 50, per_device_train_batch_size: 16, learning_rate: 1.0e-2, use_cpu: true}
distillation: {alpha: 0.5, losses: [{loss: forward_kl, temperature: 2.0}]}
pruning: [{structure: ffn, criterion: taylor, sparsity: 0.25, when: before}, {structure: vocabulary, min_count: 1, round_to: 1}]
training: {max_steps: 4, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3, use_cpu: true}
quantization: {bits: 8}
measurement: {batch_sizes: [1, 16], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A project with a finished run, and its report."""
    folder = make_targets_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run(Recipe.from_text(RECIPE)).report


def test_the_teacher_learns_to_write_and_every_stage_is_judged_by_what_it_writes(finished: tuple[Path, dict]):
    found = {s["name"]: {m["name"]: m for m in s["measurements"]} for s in finished[1]["stages"]}
    assert list(found) == ["teacher", "student", "shrunk", "quantized"]
    for stage in found.values():
        assert {"rouge_l", "chrf", "target_perplexity", "latency_p50", "macs"} <= stage.keys()
    assert found["teacher"]["target_perplexity"]["value"] < 3 and found["teacher"]["rouge_l"]["value"] > 60
    assert "32 texts" in found["teacher"]["rouge_l"]["setting"] and "chrf_recovery" in found["quantized"]
    assert finished[1]["better"]["target_perplexity"] == "lower"


def test_the_vocabulary_keeps_what_only_targets_have_and_the_card_writes(
    finished: tuple[Path, dict], capsys: pytest.CaptureFixture[str]
):
    """``lamp`` is in every target and, in training, in no text."""
    folder, report = finished
    artefact = folder / "runs/written"
    assert "lamp" in AutoTokenizer.from_pretrained(artefact).get_vocab() and report["reload"]["max_difference"] == 0.0
    assert AutoModelForSeq2SeqLM.from_pretrained(artefact).config.num_decoder_layers == 1
    code = re.search(r"```python\n(.*?)```", ModelCard.load(artefact / "README.md").text, re.DOTALL)[1]
    code = code.replace("path/to/this/folder", str(folder / "runs/written/stages/teacher"))
    exec(code.replace("Put a text here.", "the a tree green house"), {})
    assert "lamp" in capsys.readouterr().out


def test_the_commands_beside_run_read_the_task(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    folder, report = finished
    monkeypatch.chdir(folder)
    rows = {row.name: row.cells[0] for row in measure_model("runs/written/stages/teacher", Recipe.from_text(RECIPE)).rows}
    told = next(m["value"] for m in report["stages"][0]["measurements"] if m["name"] == "rouge_l")
    assert rows["rouge_l"].measurement.value == pytest.approx(told)
    asked = Recipe.from_text(RECIPE, overrides=["pruning=[{structure: ffn, sparsity: 0.5}]"])
    found = measure_sensitivity(asked, rows=8, fractions=[0.5])
    assert found.points and found.dense < 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("cache={folder: kept}", RecipeError, "knows a row by its text alone"),
        ("training.label_smoothing_factor=0.1", RecipeError, "there is none for seq2seq"),
        ("distillation.losses=[{loss: hidden_mse}]", MismatchError, "stack"),
        ("data.label_column=label", RecipeError, "would be ignored: seq2seq does not read it"),
        ("data.target_column=summary", MismatchError, "no column 'summary'"),
        ("quantization={backend: onnx}", RecipeError, "not exported"),
    ],
)
def test_what_cannot_be_had_is_refused(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch, change: str, error: type[Exception], says: str
):
    monkeypatch.chdir(finished[0])
    with pytest.raises(error, match=says):
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))


def test_a_teacher_whose_decoder_starts_otherwise_is_refused(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    """Both would read other texts, and the student would learn answers to another question."""
    folder = finished[0]
    monkeypatch.chdir(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained("base")
    model.config.decoder_start_token_id = 2
    model.save_pretrained("odd")
    AutoTokenizer.from_pretrained("base").save_pretrained("odd")
    words = ["teacher={model: odd}", "student={layers: 1}", "model=base"]
    with pytest.raises(MismatchError, match="starts with token 2, the student's with 0"):
        make_plan(Recipe.from_text(RECIPE, overrides=words))


def test_rows_hold_the_prefix_and_both_sides_cut(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "red house", "target": "tree bird stone"}\n{"text": "red", "target": "a"}')
    config = DataConfig(
        dataset=str(tmp_path), validation_split=None, test_split=None, prefix="the ", max_target_length=4, seed=0
    )
    rows = tokenize(load_splits(config, "seq2seq"), tiny_tokenizer(), 16)
    both = {tuple(r["input_ids"]): r["labels"] for split in (rows.train, rows.test) for r in split}
    the, red, house = (VOCABULARY[w] for w in ("the", "red", "house"))
    assert both[(2, the, red, house, 3)] == [2, VOCABULARY["tree"], VOCABULARY["bird"], 3]
    collate = load_splits(config, "seq2seq").format.collator(tiny_tokenizer())
    short = {"input_ids": [2], "attention_mask": [1], "labels": [5, 3]}
    batch = collate([{"input_ids": [2, 3], "attention_mask": [1, 1], "labels": [5]}, short])
    assert batch["labels"].tolist() == [[5, -100], [5, 3]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    (tmp_path / "train.jsonl").write_text('{"text": "red", "target": "a"}\n{"text": "red", "target": " "}')
    with pytest.raises(MismatchError, match="the target is empty"):
        tokenize(load_splits(config, "seq2seq"), tiny_tokenizer(), 16)
