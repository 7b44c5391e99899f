"""Reducing and mixing, against sums written out by hand."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.losses import LOSSES, forward_kl
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, NonFiniteError


class Fixed(nn.Module):
    """A teacher that always says the same."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids=None, return_dict=None):
        return CausalLMOutput(logits=self.logits)


def distiller(teacher_logits, *, alpha=1.0, shifts=False, losses=None):
    config = DistillationConfig(alpha=alpha, losses=losses or (LossTerm(),))
    return Distiller(config, Teacher(Fixed(teacher_logits)), shifts_labels=shifts)


LABELS = torch.tensor([[5, 6, 7, -100], [5, -100, 7, 8]])
KEPT = [(0, 0), (0, 1), (1, 1), (1, 2)]


def test_a_language_model_compares_the_logits_that_predict_a_labelled_token():
    """Comparing at the label instead of before it pairs every token with the wrong distribution."""
    student, teacher = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    loss = distiller(teacher, shifts=True).mix(torch.tensor(9.0), {"logits": student}, {"labels": LABELS})
    by_hand = sum(forward_kl(student[i], teacher[i]) for i in KEPT) / len(KEPT)
    torch.testing.assert_close(loss, by_hand)


def test_what_is_masked_has_no_say_even_where_it_is_no_number():
    """0 times NaN is NaN: a masked position must not reach the gradient."""
    teacher, student = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    clean = student.clone().requires_grad_()
    distiller(teacher, shifts=True).mix(torch.zeros(()), {"logits": clean}, {"labels": LABELS}).backward()
    dirty_teacher, dirty = teacher.clone(), student.clone()
    for row, column in ((0, 2), (0, 3), (1, 0), (1, 3)):
        dirty_teacher[row, column], dirty[row, column] = float("nan"), float("nan")
    dirty.requires_grad_()
    distiller(dirty_teacher, shifts=True).mix(torch.zeros(()), {"logits": dirty}, {"labels": LABELS}).backward()
    assert torch.equal(clean.grad, dirty.grad) and clean.grad.abs().sum() > 0


def test_the_mix_is_the_formula():
    """A weight applied twice, or alpha on the wrong side, only shifts a curve."""
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    losses = (LossTerm(temperature=2.0, weight=0.5), LossTerm(loss="reverse_kl", weight=3.0))
    mixed = distiller(teacher, alpha=0.3, losses=losses).mix(
        torch.tensor(1.7), {"logits": student}, {"labels": torch.tensor([0, 1, 2])}
    )
    first = LOSSES["forward_kl"].function(student, teacher, temperature=2.0).mean()
    second = LOSSES["reverse_kl"].function(student, teacher, temperature=1.0).mean()
    torch.testing.assert_close(mixed, 0.7 * 1.7 + 0.3 * (0.5 * first + 3.0 * second))


def test_parts_of_a_step_add_up_to_the_step():
    """A mean of means weighs a short part like a long one."""
    student, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, -100, 2, 3])
    whole = distiller(teacher).mix(torch.zeros(()), {"logits": student}, {"labels": labels})
    parts = [
        distiller(teacher[part]).mix(
            torch.zeros(()), {"logits": student[part]}, {"labels": labels[part]}, count=torch.tensor(4.0)
        )
        for part in (slice(0, 4), slice(4, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_batch_in_which_nothing_counts_gives_zero_not_nan():
    """One unlabelled batch would end a run of hours."""
    student = torch.randn(2, 4, requires_grad=True)
    loss = distiller(torch.randn(2, 4)).mix(torch.zeros(()), {"logits": student}, {"labels": torch.tensor([-100, -100])})
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().sum() == 0


@pytest.mark.parametrize("student", [(2, 1), (2, 4), (1, 3)])
def test_other_shapes_are_an_error_not_a_broadcast(student):
    """[2, 3] against [2, 1] or [1, 3] broadcasts, and the loss falls."""
    with pytest.raises(MismatchError, match="student and teacher logits") as error:
        distiller(torch.randn(2, 3)).mix(torch.zeros(()), {"logits": torch.randn(student)}, {"labels": torch.tensor([0, 1])})
    assert error.value.code == 3


def test_one_class_is_refused():
    """Over one class every divergence is zero: a regression would be taught nothing."""
    with pytest.raises(MismatchError, match=r"are values\.\nUse logit_mse"):
        distiller(torch.randn(2, 1)).mix(torch.zeros(()), {"logits": torch.randn(2, 1)}, {"labels": torch.tensor([0.1, 0.2])})


def test_many_labels_a_row_are_refused():
    """A softmax over classes that do not exclude each other teaches the wrong thing."""
    with pytest.raises(MismatchError, match="labels"):
        distiller(torch.randn(2, 3)).mix(torch.zeros(()), {"logits": torch.randn(2, 3)}, {"labels": torch.ones(2, 3)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_teacher_that_is_not_finite_is_named_by_row(bad):
    """A NaN in the loss is NaN in every weight one step later."""
    teacher = torch.randn(4, 3)
    teacher[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"batch rows 2\."):
        distiller(teacher).mix(torch.zeros(()), {"logits": torch.randn(4, 3)}, {"labels": torch.tensor([0, 1, 2, 0])})


def test_means_are_read_once_under_the_name_of_each_term():
    """Two terms under one name, or a mean over all time, tell nothing about now."""
    one = distiller(torch.randn(2, 3), losses=(LossTerm(), LossTerm(temperature=2.0)))
    for task in (1.0, 3.0):
        one.mix(torch.tensor(task), {"logits": torch.randn(2, 3)}, {"labels": torch.tensor([0, 1])})
    read = one.read(2)
    assert list(read) == ["loss/task", "loss/forward_kl", "loss/forward_kl_2"]
    assert read["loss/task"].item() == 2.0 and one.read(2) == {}


def test_alpha_zero_leaves_distillation_out_even_where_it_is_infinite():
    """0 times infinity is NaN: the labels-only control would stop where plain training goes on."""
    student = torch.tensor([[float("inf"), 0.0, 0.0]])
    task = torch.tensor(1.5)
    assert distiller(torch.randn(1, 3), alpha=0.0).mix(task, {"logits": student}, {"labels": torch.tensor([0])}) is task
