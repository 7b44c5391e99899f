"""Tags, label sets and numbers from recipe to card. What these prevent: a task that trains as if it were another."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, pipeline

from hf_shrink import Recipe, run
from hf_shrink.judging import measure_model
from hf_shrink.sensitivity import measure_sensitivity
from tests.project import LABELS, make_labelled_project

METRICS = {
    "token-classification": ["entity_f1", "tag_accuracy"],
    "multi-label-classification": ["micro_f1", "macro_f1"],
    "text-regression": ["pearson", "spearman", "mse"],
}
HEADS = {
    "token-classification": ("BertForTokenClassification", None, 4),
    "multi-label-classification": ("BertForSequenceClassification", "multi_label_classification", 4),
    "text-regression": ("BertForSequenceClassification", "regression", 1),
}
TRAINING = "{max_steps: 60, per_device_train_batch_size: 16, learning_rate: 3.0e-3, use_cpu: true}"


def recipe(task: str, *overrides: str) -> Recipe:
    return Recipe.from_text(
        f"""
version: 1
task: {task}
model: base
output_dir: runs/{task}
data: {{dataset: data, max_length: 32}}
student: {{start: teacher, layers: 2}}
teacher: {{model: base, training: {TRAINING}}}
pruning: [{{structure: ffn, criterion: taylor, sparsity: 0.25, when: before}}]
training: {{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3, use_cpu: true}}
quantization: {{bits: 8}}
measurement: {{batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
""",
        overrides=overrides,
    )


@pytest.fixture(scope="module", params=sorted(LABELS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    """The task, its project with a finished run, and the report."""
    task: str = request.param
    folder = make_labelled_project(tmp_path_factory.mktemp("project"), task)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return task, folder, run(recipe(task)).report


def test_the_teacher_learns_the_task_and_every_stage_is_measured_by_its_metrics(finished: tuple[str, Path, dict]):
    """Labels in another order, place or type than the model's would leave the teacher at chance."""
    task, _, report = finished
    found = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in report["stages"]}
    assert list(found) == ["teacher", "student", "quantized"]
    for name, stage in found.items():
        assert set(METRICS[task]) <= stage.keys(), name
    assert found["teacher"][METRICS[task][0]] > 60
    assert {f"{METRICS[task][0]}_difference"} <= found["quantized"].keys()
    assert found["student"]["parameters"] < found["teacher"]["parameters"]


def test_the_artefact_has_the_head_of_its_task_and_answers_through_a_pipeline(finished: tuple[str, Path, dict]):
    task, folder, report = finished
    config = AutoConfig.from_pretrained(folder / "runs" / task)
    assert (config.architectures[0], config.problem_type, config.num_labels) == HEADS[task]
    word = ModelCard.load(folder / "runs" / task / "README.md").data.pipeline_tag
    answer = pipeline(word, str(folder / "runs" / task))("the red house")
    assert answer and report["reload"]["max_difference"] == 0.0
    assert report["better"][METRICS[task][-1]] == ("lower" if task == "text-regression" else "higher")


def test_a_finished_run_is_measured_again_and_its_parts_are_worth_something(
    finished: tuple[str, Path, dict], monkeypatch: pytest.MonkeyPatch
):
    """The commands beside `run` read data and models by the task as well."""
    task, folder, report = finished
    monkeypatch.chdir(folder)
    measured = {
        row.name: row.cells[0].measurement.value for row in measure_model(f"runs/{task}/stages/teacher", recipe(task)).rows
    }
    told = {m["name"]: m["value"] for m in report["stages"][0]["measurements"]}
    assert measured[METRICS[task][0]] == pytest.approx(told[METRICS[task][0]])
    found = measure_sensitivity(recipe(task, "pruning=[{structure: ffn, sparsity: 0.5}]"), rows=8, fractions=[0.5])
    assert found.points and found.dense < 0
