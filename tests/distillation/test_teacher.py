"""The teacher stays what it was, and says it in the student's order."""

import pytest
import torch

from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError
from tests.tiny import tiny_causal_lm, tiny_classifier

BATCH = {"input_ids": torch.tensor([[2, 5, 7, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def test_no_dropout_no_gradient_even_after_someone_called_train():
    """A teacher with dropout is noise, and one with a gradient is trained."""
    model = tiny_classifier("bert").train()
    teacher = Teacher(model)
    model.train()
    first, second = teacher(BATCH), teacher(BATCH)
    assert torch.equal(first, second) and not first.requires_grad and not any(p.requires_grad for p in model.parameters())


def test_labels_and_unknown_columns_do_not_reach_the_teacher():
    """A loss computed with the student's labels costs time and fails where the classes differ."""
    teacher = Teacher(tiny_classifier("distilbert", labels=("a", "b")))
    batch = BATCH | {"labels": torch.tensor([2]), "token_type_ids": torch.ones(1, 4, dtype=torch.long)}
    assert torch.equal(teacher(batch), teacher(BATCH))


def test_classes_come_in_the_students_order():
    """Class i of the student is class order[i] of the teacher, not the other way round."""
    model = tiny_classifier("bert")
    plain, ordered = Teacher(model)(BATCH), Teacher(model, label_order=[2, 0, 1])(BATCH)
    assert torch.equal(ordered, plain[..., [2, 0, 1]]) and not torch.equal(ordered, plain)


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [0, 2]])
def test_an_order_that_is_no_permutation_is_refused(order):
    """A class taught twice is a class not taught."""
    with pytest.raises(MismatchError, match="permutation"):
        Teacher(tiny_classifier("bert"), label_order=order)


def test_an_order_of_another_length_is_refused():
    """Two of three classes would be compared with three."""
    with pytest.raises(MismatchError, match="label_order has 2 classes, the logits 3"):
        Teacher(tiny_classifier("bert"), label_order=[1, 0])(BATCH)


def test_a_compiled_teacher_is_refused():
    """It names no column, so that it would be asked about nothing; nor does it say which classes are whose."""
    with pytest.raises(MismatchError, match="OptimizedModule does not name what it reads"):
        Teacher(torch.compile(tiny_classifier("bert"), backend="eager"))


def test_a_quantised_teacher_is_not_moved(monkeypatch):
    """Moving packed weights raises, or breaks them."""
    model = tiny_causal_lm("llama")
    moved = []
    monkeypatch.setattr(model, "to", lambda device: moved.append(device))
    Teacher(model).to(torch.device("cpu"))
    assert moved == [torch.device("cpu")]
    model.is_quantized = True
    Teacher(model).to(torch.device("cpu"))
    assert len(moved) == 1
