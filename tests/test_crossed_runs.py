"""A teacher with another tokenizer, from recipe to card. What these prevent: a refusal after hours, a perplexity of other
tokens set against the student's."""

import json
from pathlib import Path

import pytest

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.plan import make_plan
from tests.project import make_lm_project
from tests.tiny import other_tokenizer, tiny_causal_lm

RECIPE = """
version: 1
task: causal-lm
model: base
output_dir: runs/crossed
data: {dataset: data, max_length: 16, packing: false}
student: {layers: 2}
teacher: {model: teacher}
distillation: {alpha: 0.5, losses: [{loss: uld}]}
training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-3, use_cpu: true}
measurement: {batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student, a teacher of more words, and texts; the current folder."""
    make_lm_project(tmp_path)
    words = {"hidden": 64, "ffn": 128, "layers": 4, "pad_token_id": None, "vocab_size": len(other_tokenizer()) + 3}
    tiny_causal_lm("llama", seed=5, **words).save_pretrained(tmp_path / "teacher")
    other_tokenizer().save_pretrained(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_plans_trains_and_measures_each_model_in_its_own_tokens(project: Path):
    recipe = Recipe.from_text(RECIPE)
    said = {stage.name: stage for stage in make_plan(recipe).stages}
    assert any("in its own tokens" in line for line in said["teacher"].does)
    assert any("1 x uld at temperature 1" in line for line in said["student"].does)
    report = run(recipe).report
    stages = {stage["name"]: {m["name"]: m for m in stage["measurements"]} for stage in report["stages"]}
    assert list(stages) == ["teacher", "student"]
    settings = {name: stage["perplexity"]["setting"] for name, stage in stages.items()}
    assert settings["teacher"] != settings["student"]
    assert not any(name.endswith(("_ratio", "_agreement", "_recovery", "_difference")) for name in stages["student"])
    assert not any("perplexity" in remark for remark in report["remarks"])
    (entry,) = json.loads((project / "runs/crossed/hf_shrink_report.json").read_text())["recipe"]["distillation"]["losses"]
    assert entry == {"loss": "uld"} and report["reload"]["max_difference"] == 0.0


def test_another_tokenizer_is_refused_and_the_loss_that_takes_it_is_named(project: Path):
    with pytest.raises(MismatchError, match=r"conflicting ids.*\n.*or, to compare across tokenizers, the loss uld") as error:
        make_plan(Recipe.from_text(RECIPE, overrides=["distillation={losses: [{}]}"]))
    assert error.value.code == 3


def test_a_text_too_long_for_the_teacher_is_refused_by_the_plan(project: Path):
    """It would stop with an index error in the middle of a training."""
    config = json.loads((project / "teacher/config.json").read_text())
    (project / "teacher/config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    with pytest.raises(MismatchError, match="tokens, but the teacher takes at most 8"):
        make_plan(Recipe.from_text(RECIPE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.packing=true", r"data\.packing: joined texts"),
        ("data={dataset: data, messages_column: m, packing: false}", r"data\.loss_on: uld compares what the assistant says"),
        ("teacher=[{model: a}, {model: b}]", "teacher: uld has one teacher"),
        ("teacher.training={max_steps: 2}", r"teacher\.training: its tokens are not the student's"),
        ("cache={folder: kept}", "cache: uld reads a live teacher"),
        ("gate={keep: 0.9}", "gate: numbers of a teacher with another tokenizer"),
        ("distillation.losses=[{loss: uld}, {loss: forward_kl}]", "forward_kl compares the same tokens"),
        ("distillation.on_policy={mix: 0.5}", "a sample has no row"),
        ("task=text-classification", r"losses\.0\.loss: compares the words .* text-classification gives .* Use forward_kl"),
        ("task=masked-lm", r"losses\.0\.loss: compares the words"),
    ],
)
def test_what_does_not_go_with_two_tokenizers_is_refused_by_the_recipe(change: str, message: str):
    """A gate on numbers about other tokens, a teacher trained on ids that are other words to it."""
    with pytest.raises(RecipeError, match=message):
        Recipe.from_text(RECIPE, overrides=[change])
