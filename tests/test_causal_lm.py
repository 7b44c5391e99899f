"""Language models from recipe to card. What these prevent: a run that takes a lower perplexity for the worse one, and a
model whose head, padding or labels are those of a classifier."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.measurement.subjects import load
from hf_shrink.plan import make_plan
from hf_shrink.sensitivity import measure_sensitivity
from tests.project import make_lm_project

TRAINING = "{max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, use_cpu: true}"
RECIPE = f"""
version: 1
task: causal-lm
model: base
output_dir: runs/lm
data: {{dataset: data, max_length: 16}}
student: {{start: teacher, layers: 2}}
teacher: {{model: base, training: {TRAINING}}}
distillation: {{alpha: 0.5, losses: [{{loss: forward_kl, temperature: 2.0}}]}}
pruning: [{{structure: ffn, sparsity: 0.5, end_step: 2}}]
training: {TRAINING}
quantization: {{bits: 8}}
measurement: {{batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
"""


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run."""
    folder = make_lm_project(tmp_path_factory.mktemp(request.param), request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(Recipe.from_text(RECIPE))
    return folder


@pytest.fixture
def own(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished project as the current folder; tests here only read it, or write beside the run."""
    monkeypatch.chdir(finished)
    return finished


def report(folder: Path) -> dict:
    return json.loads((folder / "runs/lm/hf_shrink_report.json").read_text())


def test_every_stage_has_a_perplexity_with_its_tokens_and_the_ratio_to_the_teacher(finished: Path):
    found = {s["name"]: {m["name"]: m for m in s["measurements"]} for s in report(finished)["stages"]}
    assert list(found) == ["teacher", "student", "shrunk", "quantized"]
    for name, stage in found.items():
        value, (low, high) = stage["perplexity"]["value"], stage["perplexity"]["interval"]
        assert 1 < low <= value <= high and "predicted tokens" in stage["perplexity"]["setting"], name
        assert {"tokens_per_second", "latency_p50", "bytes_on_disk", "next_token_accuracy"} <= stage.keys()
        if name != "teacher":
            ratio = stage["perplexity_ratio"]
            assert ratio["value"] == pytest.approx(value / found["teacher"]["perplexity"]["value"])
            assert ratio["interval"][0] <= ratio["value"] <= ratio["interval"][1]
            assert 0 <= stage["next_token_agreement"]["value"] <= 100
    assert found["shrunk"]["parameters"]["value"] < found["student"]["parameters"]["value"]
    assert found["quantized"]["bytes_on_disk"]["value"] < found["shrunk"]["bytes_on_disk"]["value"]
    assert report(finished)["better"]["perplexity"] == "lower"


def test_the_perplexity_is_that_of_a_plain_loop_over_the_test_texts(finished: Path):
    """The second implementation: transformers' own loss, block by block, weighted by the tokens it predicts."""
    folder = finished / "runs/lm/stages/shrunk"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [path.read_text() for path in sorted((finished / "data/test").glob("*.txt"))]
    stream = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = [torch.tensor([stream[i : i + 16]]) for i in range(0, len(stream), 16)]
    with torch.no_grad():
        parts = [
            (model(ids, labels=ids).loss.double() * (ids.shape[1] - 1), ids.shape[1] - 1) for ids in blocks if ids.shape[1] > 1
        ]
    expected = torch.exp(sum(nll for nll, _ in parts) / sum(count for _, count in parts)).item()
    shrunk = next(s for s in report(finished)["stages"] if s["name"] == "shrunk")
    found = next(m for m in shrunk["measurements"] if m["name"] == "perplexity")
    assert found["value"] == pytest.approx(expected, rel=1e-5)
    assert f"{sum(count for _, count in parts)} predicted tokens" in found["setting"]


def test_the_artefact_is_a_language_model_that_plain_transformers_loads_and_that_writes(finished: Path):
    folder = finished / "runs/lm"
    assert report(finished)["tier"] == "stock" and report(finished)["reload"]["max_difference"] == 0.0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    written = pipeline("text-generation", folder)("the red house", max_new_tokens=3)[0]["generated_text"]
    assert written.startswith("the red house")


def test_the_head_tied_to_the_embeddings_is_not_quantised(finished: Path):
    """Quantised together with the embeddings, both ends of the model would change."""
    model = AutoModelForCausalLM.from_pretrained(finished / "runs/lm")
    assert model.get_output_embeddings().weight.is_floating_point()
    assert "lm_head" in report(finished)["kept_in_high_precision"]


def test_the_card_says_which_way_is_better_and_what_the_hub_calls_the_task(finished: Path):
    card = ModelCard.load(finished / "runs/lm/README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert {result.metric_type for result in card.data.eval_results} == {"perplexity", "accuracy"}
    assert "x the perplexity (lower is better)" in card.text and "| perplexity (lower is better) |" in card.text
    assert 'pipeline("text-generation"' in card.text


def test_a_worse_perplexity_is_the_one_that_is_remarked_upon(finished: Path):
    """Read like an accuracy, every improvement would be reported as a loss."""
    found = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in report(finished)["stages"]}
    remarks = report(finished)["remarks"]
    for name in ("student", "shrunk", "quantized"):
        worse = found[name]["perplexity"] > found["teacher"]["perplexity"]
        told = any(line.startswith(f"{name}: perplexity") and "that of teacher" in line for line in remarks)
        assert worse == told, (name, remarks)


def test_the_plan_counts_blocks_and_is_right_to_the_parameter(own: Path):
    plan = {stage.name: stage for stage in make_plan(Recipe.from_text(RECIPE)).stages}
    for stage in report(own)["stages"]:
        assert plan[stage["name"]].parameters == next(m["value"] for m in stage["measurements"] if m["name"] == "parameters")
    assert "blocks" in plan["report"].does[0]


def test_folders_are_loaded_and_measured_as_what_their_config_says_they_are(own: Path):
    """Loaded as classifiers, language models get a random head, and the clock times another model."""
    model, missing = load(Path("base"))
    assert model.get_output_embeddings() is not None and missing == ()
    measured = measure_model("runs/lm/stages/shrunk", Recipe.from_text(RECIPE))
    row = next(row for row in measured.rows if row.name == "perplexity")
    shrunk = next(s for s in report(own)["stages"] if s["name"] == "shrunk")
    assert row.cells[0].measurement.value == pytest.approx(
        next(m["value"] for m in shrunk["measurements"] if m["name"] == "perplexity")
    )
    assert row.label == "perplexity (lower is better)"


@pytest.mark.parametrize("finished", ["gpt2"], indirect=True)
def test_a_teacher_as_it_comes_and_pruning_before_training_by_what_layers_lose(own: Path):
    """The other road: no fine-tuning, calibration batches with labels for every token, sensitivity by likelihood."""
    words = [
        "teacher={model: runs/lm/stages/teacher}",
        "model=runs/lm/stages/teacher",
        "student={layers: 2}",
        "pruning=[{structure: ffn, criterion: taylor, sparsity: 0.25, when: before, reconstruct: true}]",
        "quantization={bits: 16, dtype: bfloat16}",
        "output_dir=runs/other",
    ]
    outcome = run(Recipe.from_text(RECIPE, overrides=words))
    assert [stage["name"] for stage in outcome.report["stages"]] == ["teacher", "student", "quantized"]
    found = measure_sensitivity(Recipe.from_text(RECIPE), rows=4, fractions=[0.5])
    assert found.points and found.dense < 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("measurement.floor=tfidf", RecipeError, "there is none for causal-lm"),
        ("data.label_column=label", RecipeError, "would be ignored: causal-lm does not read it"),
        ("data.loss_on=assistant", RecipeError, "plain text has no assistant"),
        ("data.max_length=65", MismatchError, "the model takes at most 64"),
        ("data.text_column=txt", None, ""),
    ],
)
def test_what_a_language_model_cannot_use_is_refused(own: Path, change: str, error: type[Exception] | None, says: str):
    if error is None:  # a file of text has no columns: whatever the column is called, it is that text
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))
        return
    with pytest.raises(error, match=says):
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))
