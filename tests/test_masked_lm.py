"""Masked language models from recipe to card. What these prevent: a run that judges each stage by other hidden tokens, learns
from tokens that were not hidden, or hands out an untied vocabulary."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, pipeline

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.models.load import load_for
from hf_shrink.plan import make_plan
from hf_shrink.sensitivity import measure_sensitivity
from tests.project import UNUSED, make_masked_project
from tests.tiny import VOCABULARY

TRAINING = "{max_steps: 60, per_device_train_batch_size: 16, learning_rate: 3.0e-3, use_cpu: true}"
RECIPE = f"""
version: 1
task: masked-lm
model: base
output_dir: runs/masked
data: {{dataset: data, max_length: 32, packing: false}}
student: {{start: teacher, layers: 2}}
teacher: {{model: base, training: {TRAINING}}}
distillation: {{alpha: 0.5, losses: [{{loss: forward_kl, temperature: 2.0}}]}}
pruning: [{{structure: ffn, sparsity: 0.5, end_step: 2}}, {{structure: vocabulary, min_count: 1, round_to: 1}}]
training: {{max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-3, use_cpu: true}}
quantization: {{bits: 8}}
measurement: {{batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A project with a finished run, and its report."""
    folder = make_masked_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run(Recipe.from_text(RECIPE)).report


def measured(report: dict) -> dict[str, dict[str, dict]]:
    return {s["name"]: {m["name"]: m for m in s["measurements"]} for s in report["stages"]}


def test_the_teacher_learns_and_every_stage_is_asked_for_the_same_hidden_tokens(finished: tuple[Path, dict]):
    found = measured(finished[1])
    assert list(found) == ["teacher", "student", "shrunk", "quantized"]
    assert 1 < found["teacher"]["masked_perplexity"]["value"] < 8
    digests = {stage["masked_perplexity"]["setting"] for name, stage in found.items() if name in ("teacher", "student")}
    assert len(digests) == 1 and "hidden tokens" in digests.pop()
    assert {"masked_perplexity_ratio", "masked_token_agreement"} <= found["student"].keys()
    assert 0 <= found["shrunk"]["masked_token_accuracy"]["value"] <= 100


def test_the_artefact_fills_masks_with_a_tied_and_smaller_vocabulary(finished: tuple[Path, dict]):
    folder, report = finished
    model = AutoModelForMaskedLM.from_pretrained(folder / "runs/masked/stages/shrunk")
    assert model.config.vocab_size < len(VOCABULARY) + UNUSED + 1
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert len(model.cls.predictions.bias) == model.config.vocab_size
    card = ModelCard.load(folder / "runs/masked/README.md")
    answers = pipeline(card.data.pipeline_tag, str(folder / "runs/masked"))("the red [MASK]")
    assert len(answers) == 5 and report["reload"]["max_difference"] == 0.0
    assert "mask_token" in card.text


def test_the_plan_the_measurement_and_the_worth_of_parts_read_the_task(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
):
    folder, report = finished
    monkeypatch.chdir(folder)
    plan = {stage.name: stage.parameters for stage in make_plan(Recipe.from_text(RECIPE)).stages}
    for name, stage in measured(report).items():
        assert plan[name] == stage["parameters"]["value"], name
    rows = {row.name: row.cells[0] for row in measure_model("runs/masked/stages/teacher", Recipe.from_text(RECIPE)).rows}
    told = measured(report)["teacher"]["masked_perplexity"]["value"]
    assert rows["masked_perplexity"].measurement.value == pytest.approx(told)
    found = measure_sensitivity(
        Recipe.from_text(RECIPE, overrides=["pruning=[{structure: ffn, sparsity: 0.5}]"]), rows=8, fractions=[0.5]
    )
    assert found.points and found.dense < 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("cache={folder: kept}", RecipeError, "hides other tokens at each reading"),
        ("data.label_column=label", RecipeError, "would be ignored: masked-lm does not read it"),
        ("measurement.floor=tfidf", RecipeError, "there is none for masked-lm"),
        ("data.mask_probability=1.0", RecipeError, r"must be a number in \(0.0, 1.0\)"),
        ("data.max_length=2", MismatchError, "leave no room"),
    ],
)
def test_what_cannot_be_had_is_refused(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch, change: str, error: type[Exception], says: str
):
    monkeypatch.chdir(finished[0])
    with pytest.raises(error, match=says):
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))


def test_a_model_without_a_head_learns_one_but_does_not_teach_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A random head would teach noise."""
    make_masked_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    AutoModelForMaskedLM.from_pretrained("base").base_model.save_pretrained("headless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "headless" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    assert load_for("masked-lm", "headless", new_head=True).cls.predictions.decoder.out_features
    with pytest.raises(MismatchError, match="missing"):
        load_for("masked-lm", "headless", new_head=False)
