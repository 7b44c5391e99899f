"""Questions about texts from recipe to card. What these prevent: places of tokens that are taken for places in the text, a
head of another width, and a card with a pipeline that transformers no longer has."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForQuestionAnswering

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.plan import make_plan
from hf_shrink.sensitivity import measure_sensitivity
from tests.project import make_answers_project

RECIPE = """
version: 1
task: question-answering
model: base
output_dir: runs/answers
data: {dataset: data, max_length: 14, doc_stride: 2}
student: {start: teacher, layers: 2}
teacher:
  model: base
  training: {max_steps: 80, per_device_train_batch_size: 16, learning_rate: 3.0e-3, use_cpu: true}
distillation: {alpha: 0.5, losses: [{loss: forward_kl, temperature: 2.0}, {loss: hidden_mse}]}
pruning: [{structure: ffn, criterion: taylor, sparsity: 0.25, when: before}]
training: {max_steps: 4, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3, use_cpu: true}
quantization: {bits: 8}
measurement: {batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A project with a finished run, and its report."""
    folder = make_answers_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run(Recipe.from_text(RECIPE)).report


def test_the_teacher_finds_answers_and_every_stage_is_judged_by_their_text(finished: tuple[Path, dict]):
    found = {s["name"]: {m["name"]: m for m in s["measurements"]} for s in finished[1]["stages"]}
    assert list(found) == ["teacher", "student", "quantized"]
    assert found["teacher"]["exact_match"]["value"] > 80
    assert "32 questions" in found["teacher"]["exact_match"]["setting"]
    assert {"answer_f1", "answer_f1_difference", "exact_match_recovery"} <= found["quantized"].keys()
    assert finished[1]["better"]["answer_f1"] == "higher"


def test_the_card_shows_code_that_answers_without_a_pipeline(finished: tuple[Path, dict], capsys: pytest.CaptureFixture[str]):
    folder, report = finished
    assert AutoModelForQuestionAnswering.from_pretrained(folder / "runs/answers").config.num_labels == 2
    card = ModelCard.load(folder / "runs/answers/README.md")
    assert card.data.pipeline_tag == "question-answering" and report["reload"]["max_difference"] == 0.0
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    code = code.replace("path/to/this/folder", str(folder / "runs/answers/stages/teacher"))
    code = code.replace("Put a question here.", "the song")
    code = code.replace("Put a text here that holds the answer.", "a tree green door")
    exec(code, {})
    assert capsys.readouterr().out.strip() == "green"


def test_the_commands_beside_run_read_the_task(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    folder, report = finished
    monkeypatch.chdir(folder)
    rows = {row.name: row.cells[0] for row in measure_model("runs/answers/stages/teacher", Recipe.from_text(RECIPE)).rows}
    told = next(m["value"] for m in report["stages"][0]["measurements"] if m["name"] == "answer_f1")
    assert rows["answer_f1"].measurement.value == pytest.approx(told)
    found = measure_sensitivity(Recipe.from_text(RECIPE), rows=8, fractions=[0.5])
    assert found.points and found.dense < 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("cache={folder: kept}", RecipeError, "two answers a token"),
        ("training.label_smoothing_factor=0.1", RecipeError, "there is none for question-answering"),
        ("distillation.losses=[{loss: logit_mse}]", RecipeError, "places in a text"),
        ("data.text_column=text", RecipeError, "would be ignored: question-answering does not read it"),
        ("data.doc_stride=12", MismatchError, "lower doc_stride"),
    ],
)
def test_what_cannot_be_had_is_refused(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch, change: str, error: type[Exception], says: str
):
    monkeypatch.chdir(finished[0])
    with pytest.raises(error, match=says):
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))
