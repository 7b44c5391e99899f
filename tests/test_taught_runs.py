"""Distillation in the recipe of every task. What these prevent: a loss that is refused after hours of teacher training, or
not at all."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from hf_shrink import Recipe, run
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.plan import make_plan
from tests.project import LABELS, UNUSED, make_labelled_project, make_lm_project, make_project
from tests.tiny import (
    COLOURS,
    VOCABULARY,
    tiny_causal_lm,
    tiny_classifier,
    tiny_config,
    tiny_lm_tokenizer,
    tiny_tokenizer,
)

OWN = {"multi-label-classification": "binary_kl", "text-regression": "logit_mse"}
"""The loss on logits of each task that has no classes."""
SET = ("blue", "green", "house", "red")
"""The labels of the set of labels."""
TASKS = ("text-classification", "token-classification", "causal-lm", *OWN)
TRAINING = "{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, logging_steps: 1}"


def make(task: str, folder: Path) -> Path:
    if task == "causal-lm":
        return make_lm_project(folder)
    return make_labelled_project(folder, task) if task in LABELS else make_project(folder, layers=3)


def recipe(task: str, *losses: str, more: str = "", teacher: str = "base", training: str = TRAINING) -> Recipe:
    return Recipe.from_text(f"""
version: 1
task: {task}
model: base
output_dir: runs/taught
data: {{dataset: data, max_length: 32}}
student: {{layers: 2}}
teacher: {{model: {teacher}, training: {training}}}
distillation: {{losses: [{", ".join(losses)}]}}
training: {TRAINING}
measurement: {{batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
{more}
""")


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in TASKS if task not in ("causal-lm", "token-classification")]


@pytest.mark.parametrize("task", ["causal-lm", "token-classification", *SLOW])
def test_every_task_is_taught_by_logits_and_layers_of_another_width(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A room that works alone, and not with the labels, masks or widths that a recipe brings it."""
    monkeypatch.chdir(make(task, tmp_path))
    read, found = Distiller.read, []
    monkeypatch.setattr(Distiller, "read", lambda self, steps: found.append(read(self, steps)) or found[-1])
    losses = (OWN.get(task, "forward_kl"), "hidden_mse", "attention_kl", "value_relation_kl")
    prune = "pruning: [{structure: heads, sparsity: 0.5, end_step: 2}, {structure: hidden, sparsity: 0.5}]"
    outcome = run(recipe(task, *(f"{{loss: {loss}}}" for loss in losses), more=prune))
    assert [stage["name"] for stage in outcome.report["stages"]] == ["teacher", "student", "shrunk"]
    (first, *_) = [terms for terms in found if terms]
    assert all(first[f"loss/{loss}"] > 0 for loss in losses)


@pytest.mark.parametrize(
    ("task", "loss", "instead"),
    [
        ("text-classification", "binary_kl", "forward_kl"),
        ("causal-lm", "binary_kl", "forward_kl"),
        ("multi-label-classification", "forward_kl", "binary_kl"),
        ("multi-label-classification", "decoupled_kd", "binary_kl"),
        ("text-regression", "forward_kl", "logit_mse"),
    ],
)
def test_a_loss_for_other_outputs_is_refused_by_the_recipe(task: str, loss: str, instead: str):
    """A sigmoid for each word of a vocabulary trains without an error."""
    with pytest.raises(RecipeError, match=rf"losses\.1\.loss: compares .*{task} gives .*Use {instead}"):
        recipe(task, "{loss: hidden_mse}", f"{{loss: {loss}}}")


def teacher_of_language(folder: Path, words: int) -> None:
    model = tiny_causal_lm("llama", layers=3, hidden=64, ffn=128, pad_token_id=None, vocab_size=len(VOCABULARY) + words)
    model.save_pretrained(folder / "teacher")
    tiny_lm_tokenizer().save_pretrained(folder / "teacher")


@pytest.mark.parametrize(("words", "says"), [(16, None), (-1, "the teacher")])
def test_a_teacher_that_lacks_words_is_refused_by_the_plan_and_padding_is_fine(
    words: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An index error in the first batch of the teacher's training, or a refusal after the last one."""
    monkeypatch.chdir(make("causal-lm", tmp_path))
    teacher_of_language(tmp_path, words)
    if says is None:
        make_plan(recipe("causal-lm", "{}", teacher="teacher"))
        return
    with pytest.raises(MismatchError, match=says):
        make_plan(recipe("causal-lm", "{}", teacher="teacher"))


def test_a_teacher_with_fewer_positions_is_refused_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would stop with an index error in the middle of a training."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    config = tiny_config("bert", layers=3, hidden=64, ffn=128, vocab_size=len(VOCABULARY) + UNUSED)
    assert isinstance(config, BertConfig)
    config.max_position_embeddings = 8
    BertModel(config).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(unused=UNUSED).save_pretrained(tmp_path / "teacher")
    with pytest.raises(MismatchError, match="the teacher takes at most 8"):
        make_plan(recipe("text-classification", "{}", teacher="teacher"))


@pytest.mark.parametrize(
    ("loss", "pruning", "says"),
    [
        ("{loss: hidden_mse, layers: [[1, 2], [2, 2]]}", "[]", r"losses\.1.*layers \[2, 2\].*student has layers 0\.\.1"),
        ("{loss: hidden_mse, layers: [[1, 2]]}", "[{structure: layers, sparsity: 0.5}]", r"student has layers 0\.\.0"),
        ("{loss: attention_kl}", "[{structure: heads, sparsity: 0.5, when: before}]", "the student has 2 heads, .* 4"),
    ],
)
def test_layers_and_heads_that_pruning_has_taken_are_refused_by_the_plan(
    loss: str, pruning: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The student is made after the teacher is trained: its first step would be too late."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    with pytest.raises(MismatchError, match=says):
        make_plan(recipe("text-classification", "{}", loss, more=f"pruning: {pruning}"))


@pytest.mark.parametrize(
    ("task", "labels", "kind", "says"),
    [
        ("text-regression", ("x",), None, None),
        ("text-regression", ("x",), "regression", None),
        (
            "multi-label-classification",
            ("blue", "green", "house", "red"),
            "single_label_classification",
            "problem_type to multi",
        ),
        ("multi-label-classification", SET, None, "problem_type to multi"),
        ("text-classification", COLOURS, "multi_label_classification", "is for multi_label_classification"),
        ("text-classification", COLOURS, None, None),
    ],
)
def test_a_teacher_as_it_comes_is_for_the_same_kind_of_answer(
    task: str, labels: tuple[str, ...], kind: str | None, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A softmax over the same names teaches a sigmoid without an error, and the report fails after all training."""
    monkeypatch.chdir(make(task, tmp_path))
    words = {"layers": 3, "hidden": 64, "ffn": 128, "vocab_size": len(VOCABULARY) + UNUSED, "problem_type": kind}
    tiny_classifier(labels=labels, **words).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(unused=UNUSED).save_pretrained(tmp_path / "teacher")
    chosen = recipe(task, f"{{loss: {OWN.get(task, 'forward_kl')}}}", teacher="teacher", training="null")
    if says is not None:
        with pytest.raises(MismatchError, match=says):
            make_plan(chosen)
    else:
        assert [stage["name"] for stage in run(chosen).report["stages"]] == ["teacher", "student"]
