"""Recipes whose layers learn at different times or rates. What these prevent: a section that the run does not pass on."""

from pathlib import Path

import pytest
from transformers import AutoModel

from hf_shrink import Recipe, run
from hf_shrink.distillation import samples
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.plan import make_plan
from hf_shrink.training import sampled
from hf_shrink.training.optimized import OptimizedTrainer
from tests.project import make_lm_project, make_project

BASE = """
version: 1
task: text-classification
model: base
output_dir: runs/staged
data: {dataset: data, max_length: 32}
student: {layers: 2}
teacher: {model: base, training: TRAINING}
distillation: {losses: [{loss: forward_kl}, {loss: hidden_mse}]}
training: TRAINING
measurement: {batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}
""".replace("TRAINING", "{max_steps: 5, per_device_train_batch_size: 4, use_cpu: true}")

STAGES = "distillation.progressive={order: layer_by_layer, steps_per_layer: 2}"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_project(tmp_path, layers=4))


def recipe(*overrides: str) -> Recipe:
    return Recipe.from_text(BASE, overrides=overrides)


def test_the_plan_prints_the_stages_and_the_rates():
    plan = str(make_plan(recipe(STAGES, "optimization={layer_decay: 0.5, schedule: {at: [3]}}")).rich())
    for line in (
        "steps 0 to 1 teach embeddings and layer 0 alone, by hidden_mse",
        "steps 2 to 3 teach layer 1 alone, by hidden_mse",
        "from step 4 on: the whole student learns from everything",
        "x 0.5 for each layer down, x 0.12 at the embeddings",
        "learning rate: x 0.1 at steps 3",
    ):
        assert line in plan
    added = str(make_plan(recipe("optimization={unfreeze_every: 1, penalty: {kind: l2, weight: 0.01}}")).rich())
    assert "one layer more every 1 steps, the embeddings from step 3" in added and "adds 0.01 x l2" in added


def test_a_run_passes_all_of_it_to_the_student_alone(monkeypatch: pytest.MonkeyPatch):
    """The teacher would be trained in the student's stages, or nobody would."""
    seen, inner = [], OptimizedTrainer._learning
    monkeypatch.setattr(OptimizedTrainer, "_learning", lambda self, step: seen.append((step, inner(self, step))) or seen[-1][1])
    asked, whole = [], OptimizedTrainer.set_optimization
    monkeypatch.setattr(OptimizedTrainer, "set_optimization", lambda self, config: asked.append(config) or whole(self, config))
    run(recipe(STAGES, "optimization={layer_decay: 0.5, freeze: [embeddings]}"))
    assert [(step, (depths.start, depths.stop)) for step, depths in seen] == [
        (0, (0, 2)), (1, (0, 2)), (2, (2, 3)), (3, (2, 3)), (4, (0, 4))
    ]  # fmt: skip
    assert asked[0] is None and asked[1].layer_decay == 0.5


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([STAGES.replace("2}", "3}")], "2 stages take 6 steps, but the training ends after 5"),
        ([STAGES.replace(": 2}", ": [1, 2, 1]}")], "3 numbers for 2 stages"),
        (["optimization.unfreeze_every=2"], "learn from step 6 on, but the training ends after 5"),
        (["optimization.schedule={every: 5}"], "step 5 never comes"),
        (["training.lr_scheduler_type=cosine", "training.lr_scheduler_kwargs={cycles: 2}"], "training: .*cycles"),
        (["teacher.training.optim=sgdd"], "sgdd"),
        (["teacher.training.optim=sgd", "teacher.training.optim_args=nesterov=true"], "Nesterov"),
    ],
)
def test_what_the_student_cannot_do_is_told_before_the_teacher_is_trained(overrides, says):
    with pytest.raises(RecipeError, match=says):
        make_plan(recipe(*overrides))


LM = BASE.replace("text-classification", "causal-lm").replace(", {loss: hidden_mse}", "")
OWN = "distillation.on_policy={mix: 0.5, max_new_tokens: NEW}"


def test_a_language_model_is_taught_by_its_own_words_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_lm_project(tmp_path / "lm"))
    asked = Recipe.from_text(LM, overrides=[OWN.replace("NEW", "8"), "teacher.training=null", "distillation.losses.0.loss=jsd"])
    line = "50% of the batches go on from their prompts in the student's own words, up to 8 tokens at temperature 1"
    assert line in str(make_plan(asked).rich())
    seen = []
    monkeypatch.setattr(sampled, "sampled", lambda *args, **words: seen.append(samples.sampled(*args, **words)) or seen[-1])
    run(asked)
    assert 0 < len(seen) < 5
    with pytest.raises(MismatchError, match="prompt of 16 tokens and 60 new ones are more than the student's 64"):
        make_plan(Recipe.from_text(LM, overrides=[OWN.replace("NEW", "60")]))


def test_own_words_of_a_classifier_or_beside_a_cache_are_refused():
    with pytest.raises(RecipeError, match="a model for text-classification does not continue texts"):
        recipe(OWN.replace("NEW", "8"))
    with pytest.raises(RecipeError, match="cache: knows nothing of what the student says"):
        Recipe.from_text(LM, overrides=[OWN.replace("NEW", "8"), "cache={folder: answers}"])


SCRATCH = "student={start: scratch, config: {hidden_size: 32, num_hidden_layers: 1, intermediate_size: 48}}"


@pytest.mark.parametrize("text", [BASE, LM], ids=["bert", "llama"])
def test_a_student_from_scratch_is_as_large_as_planned_and_loads_again(text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if text == LM:
        monkeypatch.chdir(make_lm_project(tmp_path / "lm"))
    asked = Recipe.from_text(text.replace("student: {layers: 2}", ""), overrides=[SCRATCH])
    plan = make_plan(asked)
    (stage,) = (stage for stage in plan.stages if stage.name == "student")
    assert "random weights, of the kind of base with hidden_size 32, num_hidden_layers 1" in stage.does[0]
    outcome = run(asked)
    model = AutoModel.from_pretrained(outcome.folder)
    assert model.config.hidden_size == 32 and model.config.num_hidden_layers == 1
    student = next(stage for stage in outcome.report["stages"] if stage["name"] == "student")
    sizes = [each["value"] for each in student["measurements"] if each["name"] == "parameters"]
    assert sizes == [stage.parameters]
