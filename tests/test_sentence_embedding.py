"""Vectors of texts from recipe to card. What these prevent: padding in the mean, a student that learns nothing because there
are no labels, and a saved class that nobody else has."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer, BertModel, pipeline

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.measurement.metrics import Spearman, score
from hf_shrink.models.load import load_for
from hf_shrink.plan import make_plan
from hf_shrink.sensitivity import measure_sensitivity
from hf_shrink.sentences import as_sentence_model, pooled
from tests.project import make_pairs_project
from tests.tiny import tiny_classifier, tiny_config, tiny_inputs

RECIPE = """
version: 1
task: sentence-embedding
model: base
output_dir: runs/vectors
data: {dataset: data, max_length: 32, text_pair_column: other, similarity_column: alike}
student: {layers: 2}
teacher: {model: base}
distillation: {alpha: 1.0, losses: [{loss: sentence_cosine}, {loss: logit_mse, weight: 10.0}]}
pruning: [{structure: ffn, sparsity: 0.25, end_step: 10}]
training: {max_steps: 40, per_device_train_batch_size: 8, learning_rate: 1.0e-3, use_cpu: true}
quantization: {bits: 8}
measurement: {batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A project with a finished run, and its report."""
    folder = make_pairs_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run(Recipe.from_text(RECIPE)).report


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """The second implementation: one text at a time, so that nothing is padded."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
    return torch.stack([state / state.norm() for state in states]).double().numpy()


def test_every_stage_is_set_against_the_teacher_by_the_cosine_of_a_plain_loop(finished: tuple[Path, dict]):
    folder, report = finished
    found = {s["name"]: {m["name"]: m for m in s["measurements"]} for s in report["stages"]}
    assert list(found) == ["teacher", "student", "shrunk", "quantized"]
    rows = [json.loads(line) for line in (folder / "data/test.jsonl").read_text().splitlines()]
    sides = [[row[side] for row in rows] for side in ("text", "other")]
    teacher = [vectors(folder / "base", side) for side in sides]
    shrunk = [vectors(folder / "runs/vectors/stages/shrunk", side) for side in sides]
    expected = float(np.mean([(a * b).sum(axis=1).mean() for a, b in zip(teacher, shrunk, strict=True)]))
    assert found["shrunk"]["cosine_to_baseline"]["value"] == pytest.approx(expected, abs=1e-5)
    gold = score(Spearman, (teacher[0] * teacher[1]).sum(axis=1), [row["alike"] for row in rows])
    assert found["teacher"]["similarity_spearman"]["value"] == pytest.approx(100 * gold, abs=1e-3)
    assert "32 pairs of texts" in found["teacher"]["similarity_spearman"]["setting"]


def test_the_student_comes_nearer_to_its_teacher_than_where_it_began(finished: tuple[Path, dict]):
    """Without labels a zero loss trains without an error."""
    folder, report = finished
    losses = next(m["value"] for m in report["stages"][2]["measurements"] if m["name"] == "cosine_to_baseline")
    rows = [json.loads(line)["text"] for line in (folder / "data/test.jsonl").read_text().splitlines()]
    model = AutoModel.from_pretrained(folder / "base")
    model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[i] for i in (0, 3)])
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    with torch.no_grad():
        start = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in rows]
    began = torch.cat([pooled(state, None) for state in start]).double().numpy()
    assert losses > float((began * vectors(folder / "base", rows)).sum(axis=1).mean()) + 0.01


def test_the_artefact_is_a_plain_headless_model(finished: tuple[Path, dict], capsys: pytest.CaptureFixture[str]):
    folder, report = finished
    made = AutoModel.from_pretrained(folder / "runs/vectors")
    assert type(made) is BertModel and report["reload"]["max_difference"] == 0.0 and report["tier"] == "stock"
    card = ModelCard.load(folder / "runs/vectors/README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert pipeline(card.data.pipeline_tag, str(folder / "runs/vectors"))("the red house")
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    place = str(folder / "runs/vectors/stages/shrunk")
    texts = ["the red house", "a tree"]
    code = code.replace("path/to/this/folder", place).replace("Put a text here.", texts[0])
    exec(code.replace("Put another text here.", texts[1]), names := {})
    np.testing.assert_allclose(names["vectors"].numpy(), vectors(Path(place), texts), atol=1e-6)
    capsys.readouterr()


def test_the_commands_beside_run_read_the_task(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    folder, report = finished
    monkeypatch.chdir(folder)
    rows = {row.name: row.cells[0] for row in measure_model("runs/vectors/stages/shrunk", Recipe.from_text(RECIPE)).rows}
    told = next(m["value"] for m in report["stages"][2]["measurements"] if m["name"] == "similarity_spearman")
    assert rows["similarity_spearman"].measurement.value == pytest.approx(told)
    with pytest.raises(MismatchError, match="texts without labels"):
        measure_sensitivity(Recipe.from_text(RECIPE), rows=8, fractions=[0.5])


def test_a_cache_of_vectors_teaches_what_the_live_teacher_teaches(finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    folder, report = finished
    monkeypatch.chdir(folder)
    words = ["cache={folder: kept, dtype: float32}", "output_dir=runs/cached", "quantization=null"]
    cached = run(Recipe.from_text(RECIPE, overrides=words)).report
    values = [
        next(m["value"] for s in each["stages"] if s["name"] == "shrunk" for m in s["measurements"] if "cosine" in m["name"])
        for each in (report, cached)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("distillation.alpha=0.5", RecipeError, r"no labels beside the teacher; write 1\.0"),
        ("distillation.losses=[{loss: forward_kl}]", RecipeError, "vectors of texts.*sentence_cosine"),
        ("teacher.training={max_steps: 2}", RecipeError, "no labels to train on"),
        ("training.eval_strategy=epoch", RecipeError, "there is no loss to evaluate"),
        ("pruning=[{structure: ffn, criterion: taylor, sparsity: 0.5, when: before}]", RecipeError, "gradient of a loss"),
        ("data.text_pair_column=null", RecipeError, "is about pairs of texts"),
        ("data.similarity_column=text", MismatchError, "similarities hold string"),
        ("pruning=[{structure: hidden, sparsity: 0.5}]", MismatchError, "64 numbers, the student's 32"),
    ],
)
def test_what_cannot_be_had_is_refused(
    finished: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch, change: str, error: type[Exception], says: str
):
    monkeypatch.chdir(finished[0])
    with pytest.raises(error, match=says):
        make_plan(Recipe.from_text(RECIPE, overrides=[change]))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2"])
def test_the_mean_is_over_real_tokens_in_every_family(family: str):
    """Padding in the mean would change a text's vector with its neighbours in the batch."""
    torch.manual_seed(0)
    model = as_sentence_model(AutoModel.from_config(tiny_config(family)).eval())
    inputs = tiny_inputs(family)
    padded = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in inputs.items()}
    found = model(**padded, labels=torch.zeros(2))
    torch.testing.assert_close(found.logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits.norm(dim=1), torch.ones(2))
    assert found.loss == 0 and model(**inputs).loss is None and as_sentence_model(model) is model


def test_a_checkpoint_with_a_head_gives_vectors_and_one_without_its_layers_does_not(tmp_path: Path):
    """Heads of other tasks are left behind; a made-up layer would give vectors as well."""
    tiny_classifier().save_pretrained(tmp_path / "classifier")
    assert load_for("sentence-embedding", str(tmp_path / "classifier"), new_head=False)(**tiny_inputs("bert")).logits.shape == (
        2,
        32,
    )
    deep = json.loads((tmp_path / "classifier/config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "classifier/config.json").write_text(json.dumps(deep))
    with pytest.raises(MismatchError, match="missing"):
        load_for("sentence-embedding", str(tmp_path / "classifier"), new_head=True)
