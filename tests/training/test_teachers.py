"""More than one teacher, other kinds of outputs, other sizes of vocabulary."""

import copy

import pytest
import torch

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from tests.tiny import COLOURS, VOCABULARY, tiny_classifier
from tests.training.runs import gradient_norms, model_for, trainer_for, weights

KL = DistillationConfig(alpha=1.0, losses=(LossTerm(),))


def test_two_teachers_are_learnt_from_together(tmp_path):
    """Only the first, or only the last, would teach without anyone noticing."""
    teachers = [model_for("bert", "classification", seed=seed, dropout=False) for seed in (5, 6)]
    student = model_for("bert", "classification", dropout=False)
    trainer = trainer_for(
        "bert",
        "classification",
        tmp_path,
        model=student,
        more={"teacher": teachers, "distillation": KL},
        max_steps=1,
        learning_rate=0.0,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        mean = torch.stack([teacher(**batch).logits.softmax(-1) for teacher in teachers]).mean(0)
        expected = (mean * (mean.log() - student.eval()(**batch).logits.log_softmax(-1))).sum(-1).mean()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def names_in(*labels, folder, losses=KL.losses, student=COLOURS):
    ours, theirs = (tiny_classifier(seed=0, labels=names) for names in (student, labels))
    more = {"teacher": theirs, "distillation": DistillationConfig(alpha=1.0, losses=losses)}
    return trainer_for("bert", "classification", folder, model=ours, more=more, max_steps=1, learning_rate=0.0)


def test_the_same_classes_in_another_order_are_reordered_and_said(tmp_path, caplog):
    """By place, the student would learn green for red, and no number of the run would say so."""
    for folder, labels, logged in (("a", COLOURS, False), ("b", ("blue", "red", "green"), True)):
        caplog.clear()
        distiller = names_in(*labels, folder=tmp_path / folder).distiller
        assert distiller.teacher.label_order == ([1, 2, 0] if logged else None)
        assert ("reordered by name to red, green, blue" in caplog.text) == logged
    kind = type("Doubled", (Teacher,), {})
    own = kind(tiny_classifier(seed=5, labels=("blue", "red", "green")))
    kept = trainer_for("bert", "classification", tmp_path, more={"teacher": own, "distillation": KL}).distiller.teacher
    assert type(kept) is kind and kept.label_order == [1, 2, 0] and own.label_order is None
    both = [tiny_classifier(seed=5), tiny_classifier(seed=6, labels=("green", "blue", "red"))]
    trainer = trainer_for("bert", "classification", tmp_path, more={"teacher": both, "distillation": KL})
    assert [each.label_order for each in trainer.distiller.teacher.teachers] == [None, [2, 0, 1]]


def test_classes_of_other_names_are_refused_unless_their_order_is_said(tmp_path):
    with pytest.raises(MismatchError, match=r"(?s)only the teacher has x, y, z.*Teacher\(model, label_order=range\(3\)\)"):
        names_in("x", "y", "z", folder=tmp_path)
    said = Teacher(tiny_classifier(labels=("x", "y", "z")), label_order=range(3))
    trainer_for("bert", "classification", tmp_path, more={"teacher": said, "distillation": KL})


@pytest.mark.parametrize(
    "free",
    [
        {"labels": ("LABEL_0", "LABEL_1", "LABEL_2")},
        {"labels": COLOURS, "student": ("LABEL_0", "LABEL_1", "LABEL_2")},
        {"labels": ("x", "y", "z"), "losses": (LossTerm(loss="hidden_mse"),)},
        {"labels": ("score",), "student": ("value",), "losses": (LossTerm(loss="logit_mse"),)},
    ],
)
def test_classes_without_names_go_by_place(free, tmp_path):
    """A head of plain transformers has LABEL_0, LABEL_1: its user knows what they mean."""
    words = dict(free)
    assert names_in(*words.pop("labels"), folder=tmp_path, **words).distiller.teacher.label_order is None


def test_a_student_larger_than_its_teacher_is_told(tmp_path, caplog):
    """Swapped, the small one teaches the large one, and all numbers look fine."""
    for layers, told in ((1, True), (2, False)):
        caplog.clear()
        more = {"teacher": model_for("bert", "classification", seed=5, layers=layers), "distillation": KL}
        trainer_for("bert", "classification", tmp_path, more=more)
        assert ("The student (BertForSequenceClassification) has " in caplog.text and "swapped?" in caplog.text) == told


def test_several_vocabularies_are_cut_to_the_words_that_all_have(tmp_path):
    """Padding that only some have must take no probability from the mean."""
    teachers = [model_for("llama", "lm", seed=5 + more, vocab_size=len(VOCABULARY) + more, dropout=False) for more in (0, 4, 9)]
    student = model_for("llama", "lm", dropout=False)
    more = {"teacher": teachers, "distillation": KL}
    trainer = trainer_for("llama", "lm", tmp_path, model=student, more=more, max_steps=1, learning_rate=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        mean = torch.stack([teacher(**batch).logits[..., : len(VOCABULARY)].softmax(-1) for teacher in teachers]).mean(0)
        each = (mean * (mean.log() - student.eval()(**batch).logits.log_softmax(-1))).sum(-1)
    rows = zip(each, batch["attention_mask"].sum(1) - 1, strict=True)
    trainer.train()
    expected = torch.cat([row[:length] for row, length in rows]).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("teachers", "more", "error", "message"),
    [
        (0, {}, RecipeError, "empty list"),
        (2, {"losses": (LossTerm(loss="hidden_mse"),)}, MismatchError, "several teachers"),
    ],
)
def test_what_several_teachers_cannot_do_is_refused(teachers, more, error, message, tmp_path):
    """An option that does nothing looks like one that does not help."""
    config = DistillationConfig(**{"losses": (LossTerm(),)} | more)
    given = [model_for("bert", "classification", seed=5) for _ in range(teachers)]
    with pytest.raises(error, match=message):
        trainer_for("bert", "classification", tmp_path, more={"teacher": given, "distillation": config})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"teacher": "google-bert/bert-base-uncased"}, "got 'google-bert/bert-base-uncased'; pass a model"),
        ({"teacher": ["a/model", "another/model"]}, "got a list with str"),
        ({"teacher": [Ensemble.__new__(Ensemble)]}, "got a list with Ensemble"),
        ({"distillation": {"losses": [{"loss": "forward_kl"}]}}, r"distillation: got \{'losses'.*pass DistillationConfig"),
        ({"optimization": {"layer_decay": 0.9}}, r"optimization: got \{'layer_decay'.*pass OptimizationConfig"),
    ],
)
def test_what_is_no_teacher_and_no_config_is_refused_in_words(words, says, tmp_path):
    """The name of a model in place of the model ends in a RecursionError, which says nothing of it."""
    given = {"teacher": model_for("bert", "classification", seed=5), "distillation": DistillationConfig(losses=(LossTerm(),))}
    with pytest.raises(RecipeError, match=says):
        trainer_for("bert", "classification", tmp_path, more=given | words)


@pytest.mark.parametrize(
    ("labels", "loss", "problem"),
    [
        (("a", "b", "c"), "binary_kl", "multi_label_classification"),
        (("a", "b", "c"), "logit_mse", "multi_label_classification"),
        (("value",), "logit_mse", "regression"),
        (("x", "y"), "logit_mse", "regression"),
    ],
)
def test_labels_and_values_are_taught_whatever_the_number_of_micro_batches(labels, loss, problem, tmp_path):
    """A softmax over labels, or over one value, teaches the wrong thing or nothing."""
    config = DistillationConfig(alpha=0.5, losses=(LossTerm(loss=loss),))
    student, teacher = (tiny_classifier("bert", seed=seed, labels=labels, problem_type=problem) for seed in (0, 5))
    found = []
    for batch, steps in ((14, 1), (4, 4)):
        more = {"teacher": copy.deepcopy(teacher), "distillation": config}
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2, "rows": 14}
        trainer = trainer_for("bert", "classification", tmp_path, model=copy.deepcopy(student).eval(), more=more, **words)
        trainer.train_dataset = _fractions(trainer.train_dataset, len(labels))
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with gradient_norms(trainer) as norms:
            trainer.train()
        found.append((norms, [e[f"loss/{loss}"] for e in trainer.state.log_history if "loss" in e]))
    assert min(found[0][0]) > 1e-4 and min(found[0][1]) > 0
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4) and found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def _fractions(data, outputs):
    labels = [[float((row + i) % 2) for i in range(outputs)] if outputs > 1 else float(row) for row in data["labels"]]
    return data.remove_columns("labels").add_column("labels", labels)


def lm(folder, teacher_words, **more):
    words = {"model": model_for("llama", "lm", dropout=False), "max_steps": 1, "learning_rate": 0.0}
    teacher = model_for("llama", "lm", seed=5, vocab_size=teacher_words)
    config = DistillationConfig(alpha=1.0, losses=(LossTerm(),))
    return trainer_for("llama", "lm", folder, more={"teacher": teacher, "distillation": config}, **words | more), teacher


@pytest.mark.parametrize("streams", [True, False])
def test_words_that_only_pad_a_vocabulary_are_left_out(streams, tmp_path, caplog, monkeypatch):
    """A vocabulary padded to a round number is the same vocabulary: its padding must not take probability."""
    with caplog.at_level("INFO", logger="hf_shrink.training.taught"):
        trainer, teacher = lm(tmp_path, len(VOCABULARY) + 12)
    assert [message for message in caplog.messages if "the rest is padding" in message]
    if not streams:
        monkeypatch.setattr(type(trainer), "streams", lambda *_: False)
    student, batch = trainer.model, next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        ours = student.eval()(**batch).logits.log_softmax(-1)
        theirs = teacher(**batch).logits[..., : len(VOCABULARY)].log_softmax(-1)
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    rows = zip(each, batch["attention_mask"].sum(1) - 1, strict=True)
    expected = torch.cat([row[:length] for row, length in rows]).mean()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_vocabulary_that_lacks_tokens_is_refused(tmp_path):
    """Cut to the smaller one, the last tokens would be taught as never occurring."""
    with pytest.raises(
        MismatchError, match=rf"student has {len(VOCABULARY)} words, the teacher {len(VOCABULARY) - 3}.*lose tokens"
    ) as error:
        lm(tmp_path, len(VOCABULARY) - 3)
    assert error.value.code == 3


def test_vocabularies_of_two_sizes_without_a_tokenizer_are_refused(tmp_path):
    """Nobody can tell which ids are padding."""
    from hf_shrink.training.trainer import ShrinkTrainer
    from tests.training.runs import arguments

    teacher = model_for("llama", "lm", seed=5, vocab_size=len(VOCABULARY) + 12)
    with pytest.raises(MismatchError, match="Pass the tokenizer as processing_class"):
        ShrinkTrainer(model=model_for("llama", "lm"), args=arguments(tmp_path), teacher=teacher, distillation=KL)


def test_a_copy_of_the_student_teaches_it_to_stay_itself(tmp_path):
    """Self-distillation from the dense model: the copy must not move with the student."""
    student = model_for("bert", "classification")
    teacher = copy.deepcopy(student)
    before = weights(teacher)
    config = DistillationConfig(alpha=0.5, losses=(LossTerm(), LossTerm(loss="hidden_mse")))
    trainer = trainer_for("bert", "classification", tmp_path, model=student, more={"teacher": teacher, "distillation": config})
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())
