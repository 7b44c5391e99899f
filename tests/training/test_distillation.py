"""The teacher inside a training: laws that hold whatever the model."""

import copy

import pytest
import torch

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from tests.tiny import colour_tokens, tiny_classifier
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

KL = LossTerm(temperature=2.0)


def taught(teacher, *, alpha, losses=(KL,)):
    return {"teacher": teacher, "distillation": DistillationConfig(alpha=alpha, losses=tuple(losses))}


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "lm"), ("gpt2", "classification")])
def test_alpha_zero_is_plain_training_bit_for_bit(family, task, tmp_path):
    """A teacher that draws random numbers, or a sum that rounds, makes the labels-only control another run."""
    runs = []
    for more in ({}, taught(model_for(family, task, seed=5), alpha=0.0)):
        trainer = trainer_for(family, task, tmp_path, more=more, eval_strategy="steps", eval_steps=3)
        trainer.train()
        entries = [{k: v for k, v in entry.items() if "/" not in k} for entry in history(trainer)]
        runs.append((weights(trainer.model), entries))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


@pytest.mark.parametrize(("family", "task"), [("distilbert", "classification"), ("llama", "lm")])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(family, task, tmp_path):
    """A loss that reads the wrong rows, or shifts once too often, is not zero here."""
    student = model_for(family, task, dropout=False)
    trainer = trainer_for(
        family, task, tmp_path, model=student, more=taught(copy.deepcopy(student), alpha=1.0), learning_rate=0.0
    )
    with gradient_norms(trainer) as norms:
        trainer.train()
    assert len(norms) == 6 and max(norms) < 1e-5
    assert all(abs(entry["loss"]) < 1e-6 for entry in trainer.state.log_history if "loss" in entry)


def test_the_student_moves_towards_the_teacher_and_the_teacher_does_not_move(tmp_path):
    """A teacher left unfrozen, or in training mode, is a moving target."""
    teacher = model_for("bert", "classification", seed=5)
    teacher.train()
    before = weights(teacher)
    trainer = trainer_for("bert", "classification", tmp_path, more=taught(teacher, alpha=1.0), max_steps=60, dropout=False)
    trainer.train()
    terms = [entry["loss/forward_kl"] for entry in trainer.state.log_history if "loss/forward_kl" in entry]
    assert terms[-1] < 0.2 * terms[0]
    assert same(before, weights(teacher)) and not teacher.training and not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("task", ["classification", "lm"])
def test_logged_terms_add_up_to_the_logged_loss(steps, task, tmp_path):
    """A term logged on another scale than the loss hides which one stopped falling."""
    losses = (LossTerm(temperature=2.0, weight=0.5), LossTerm(loss="reverse_kl"), LossTerm(temperature=3.0, weight=2.0))
    more = taught(model_for("gpt2", task, seed=5), alpha=0.3, losses=losses)
    trainer = trainer_for("gpt2", task, tmp_path, more=more, gradient_accumulation_steps=steps, logging_steps=2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        kd = 0.5 * entry["loss/forward_kl"] + entry["loss/reverse_kl"] + 2 * entry["loss/forward_kl_2"]
        assert entry["loss"] == pytest.approx(0.7 * entry["loss/task"] + 0.3 * kd, rel=1e-4)


def test_evaluation_keeps_the_task_loss_and_leaves_the_teacher_alone(tmp_path):
    """An eval_loss with the teacher in it cannot be compared with an ordinary run."""
    teacher = model_for("bert", "classification", seed=5)
    trainer = trainer_for("bert", "classification", tmp_path, more=taught(teacher, alpha=0.9))
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    loss = trainer.evaluate()["eval_loss"]
    assert loss == trainer_for("bert", "classification", tmp_path).evaluate()["eval_loss"] and not calls


def test_no_term_is_logged_without_a_teacher(tmp_path):
    """Columns that are always zero look like a broken distillation."""
    trainer = trainer_for("bert", "classification", tmp_path, max_steps=1)
    trainer.train()
    assert not any("/" in key for entry in trainer.state.log_history for key in entry)


def test_a_teacher_gets_columns_that_the_student_does_not_take(tmp_path):
    """DistilBERT takes no segment ids: without them a BERT teacher reads a pair of texts as one."""
    seen = []
    teacher = model_for("bert", "classification", seed=5)
    teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs.get("token_type_ids")), with_kwargs=True)
    trainer = trainer_for("distilbert", "classification", tmp_path, more=taught(teacher, alpha=0.5), max_steps=1)
    reached = set()
    trainer.model.register_forward_pre_hook(lambda _, args, kwargs: reached.update(kwargs), with_kwargs=True)
    data = colour_tokens(8).map(lambda row: {"token_type_ids": [1] * len(row["input_ids"])})
    trainer.train_dataset, trainer.eval_dataset = data, data
    trainer.train()
    trainer.evaluate()
    assert len(seen) == 1 and seen[0] is not None and bool(seen[0].any())
    assert "input_ids" in reached and "token_type_ids" not in reached


def test_a_teacher_with_other_classes_is_refused_before_a_step(tmp_path):
    """[4, 1] against [4, 3] broadcasts, and trains."""
    before = weights(student := model_for("bert", "classification"))
    teacher = tiny_classifier("bert", labels=("yes", "no"))
    trainer = trainer_for("bert", "classification", tmp_path, model=student, more=taught(teacher, alpha=0.5))
    with pytest.raises(MismatchError, match=r"student and teacher logits \[4, 3\] and \[4, 2\]"):
        trainer.train()
    assert same(before, weights(student))


def test_non_finite_teacher_logits_name_step_and_rows_and_change_nothing(tmp_path):
    """One NaN from the teacher makes every weight NaN, and the run ends with exit code 0."""
    teacher = model_for("bert", "classification", seed=5)
    calls = []

    def poison(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            output.logits[1, 0] = float("nan")
            output.logits[3, 2] = float("inf")

    teacher.register_forward_hook(poison)
    trainer = trainer_for(
        "bert", "classification", tmp_path, more=taught(teacher, alpha=0.5), save_strategy="steps", save_steps=1
    )
    snapshots = []
    trainer.add_callback(snapshot(snapshots))
    with pytest.raises(NonFiniteError, match=r"step 3: teacher logits: .* batch rows 1, 3\.[\s\S]*checkpoint-2\.") as error:
        trainer.train()
    assert error.value.code == 3 and str(error.value).count("\n") < 3
    assert same(snapshots[-1], weights(trainer.model))


def test_the_rows_of_a_teacher_that_is_not_finite_are_told_with_their_micro_batch(tmp_path):
    """Row 2 of which of the three?"""
    teacher, calls = model_for("bert", "classification", seed=5), []

    def poison(module, args, output):
        calls.append(output.logits)
        if len(calls) == 5:
            output.logits[2, 0] = float("nan")

    teacher.register_forward_hook(poison)
    trainer = trainer_for("bert", "classification", tmp_path, more=taught(teacher, alpha=0.5), gradient_accumulation_steps=3)
    with pytest.raises(NonFiniteError, match=r"step 2: micro-batch 2 of 3: teacher logits: .* batch rows 2\."):
        trainer.train()


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "lm")])
def test_the_loss_of_a_batch_can_be_had_by_hand(family, task, tmp_path):
    """Outside of a training no step has been counted: the batch is the whole, before and after."""
    teacher = model_for(family, task, seed=5)
    words = {"max_steps": 1, "learning_rate": 0.0, "dropout": False, "train_sampling_strategy": "sequential"}
    trainer = trainer_for(family, task, tmp_path, more=taught(teacher, alpha=0.5), **words)
    batch = next(iter(trainer.get_train_dataloader()))
    before = trainer.compute_loss(trainer.model.train(), dict(batch))
    before.backward()
    trainer.train()
    assert float(before) == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    smaller = {name: value[:2] for name, value in batch.items()}
    alone = trainer_for(family, task, tmp_path, more=taught(teacher, alpha=0.5), model=trainer.model)
    after, expected = (one.compute_loss(one.model.train(), dict(smaller)) for one in (trainer, alone))
    assert float(after) == pytest.approx(float(expected), rel=1e-6) and float(after) != pytest.approx(float(before), rel=1e-3)


def snapshot(into):
    from transformers import TrainerCallback

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            into.append(weights(model))

    return Snapshot()


def test_classes_in_another_order_are_brought_into_the_students(tmp_path):
    """The same labels in another order teach the wrong class, and the loss falls all the same."""
    student = model_for("bert", "classification", dropout=False)
    order = [2, 0, 1]  # class i of the student is class order[i] of the teacher
    teacher = copy.deepcopy(student)
    for values in (teacher.classifier.weight.data, teacher.classifier.bias.data):
        values[order] = values.clone()
    more = taught(Teacher(teacher, label_order=order), alpha=1.0)
    trainer = trainer_for("bert", "classification", tmp_path, model=student, more=more, learning_rate=0.0, max_steps=1)
    trainer.train()
    assert abs(trainer.state.log_history[0]["loss"]) < 1e-6
    wrong = taught(copy.deepcopy(teacher), alpha=1.0)
    trainer = trainer_for("bert", "classification", tmp_path, model=student, more=wrong, learning_rate=0.0, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_is_taught_the_next_token(family, tmp_path):
    """Off by one position, the student learns to repeat what it has just read."""
    student, teacher = (model_for(family, "lm", seed=seed, dropout=False) for seed in (0, 5))
    more = taught(copy.deepcopy(teacher), alpha=1.0, losses=(LossTerm(),))
    trainer = trainer_for(family, "lm", tmp_path, model=student, more=more, learning_rate=0.0, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        ours, theirs = (
            model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
            for model in (student, teacher)
        )
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    by_hand = torch.cat([row[:length] for row, length in zip(each, batch["attention_mask"].sum(1) - 1, strict=True)]).mean()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_teacher_or_a_distillation_alone_is_refused(tmp_path):
    """A teacher without a loss would be loaded and never asked."""
    student = model_for("bert", "classification")
    for more in ({"teacher": copy.deepcopy(student)}, {"distillation": DistillationConfig(losses=(KL,))}):
        with pytest.raises(RecipeError, match="would be ignored"):
            trainer_for("bert", "classification", tmp_path, more=more)


def test_the_student_cannot_be_its_own_teacher(tmp_path):
    """Freezing the teacher would freeze the student: nothing trains, and nothing says so."""
    student = model_for("bert", "classification")
    with pytest.raises(RecipeError, match="shares weights"):
        trainer_for("bert", "classification", tmp_path, model=student, more=taught(student, alpha=0.5))
    assert all(p.requires_grad for p in student.parameters())


def test_the_teacher_is_not_saved(tmp_path):
    """A teacher in the checkpoint multiplies its size."""
    more = taught(model_for("bert", "classification", seed=5), alpha=0.5)
    trainer = trainer_for("bert", "classification", tmp_path, more=more, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert saved.keys() == trainer.model.state_dict().keys() and torch.is_grad_enabled()
