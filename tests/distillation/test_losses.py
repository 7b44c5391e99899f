"""The distillation losses: hand values, and laws for every entry of the table."""

import math

import pytest
import torch

from hf_shrink.distillation.losses import LOSSES, forward_kl, reverse_kl

names = pytest.mark.parametrize("name", sorted(LOSSES))


def test_forward_kl_matches_the_two_class_formula():
    """Arguments the wrong way round train too, towards another student."""
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    torch.testing.assert_close(forward_kl(student, teacher), torch.tensor([by_hand]))


def test_reverse_kl_matches_the_two_class_formula():
    """The same for the other direction."""
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    torch.testing.assert_close(reverse_kl(student, teacher), torch.tensor([by_hand]))


@names
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_zero_and_flat_where_the_logits_agree(name, temperature):
    """A cross-entropy written by mistake trains just as well, but its floor is the teacher's entropy, not zero."""
    logits = torch.randn(3, 4, 5)
    student = logits.clone().requires_grad_()
    values = LOSSES[name].function(student, logits, temperature=temperature)
    values.sum().backward()
    assert values.shape == (3, 4) and torch.equal(values, torch.zeros(3, 4))
    torch.testing.assert_close(student.grad, torch.zeros(3, 4, 5), atol=1e-6, rtol=0)


@names
def test_never_below_zero_and_above_it_where_they_differ(name):
    """A sign mistake makes the student flee from the teacher."""
    values = LOSSES[name].function(torch.randn(64, 7), torch.randn(64, 7), temperature=2.0)
    assert values.min() > 0


@names
def test_the_teacher_gets_no_gradient(name):
    """A teacher that moves towards the student makes the loss fall for the wrong reason."""
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    LOSSES[name].function(student, teacher, temperature=2.0).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@names
def test_each_position_is_on_its_own(name):
    """A mean over the batch hidden inside a loss would escape the mask."""
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    whole = LOSSES[name].function(student, teacher, temperature=1.5)
    alone = torch.cat([LOSSES[name].function(student[i : i + 1], teacher[i : i + 1], temperature=1.5) for i in range(6)])
    torch.testing.assert_close(whole, alone)


@names
def test_half_precision_logits_are_compared_in_float32(name):
    """In float16 the tails of a softmax over a vocabulary vanish."""
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    values = LOSSES[name].function(student.half(), teacher.half(), temperature=1.0)
    exact = LOSSES[name].function(student.half().float(), teacher.half().float(), temperature=1.0)
    assert values.dtype == torch.float32 and torch.equal(values, exact)


@names
def test_the_gradient_keeps_its_size_when_the_temperature_rises(name):
    """Without the square a temperature of 10 silently divides the learning rate by about 100."""
    student, teacher = 0.01 * torch.randn(16, 5), 0.01 * torch.randn(16, 5)

    def slope(temperature: float) -> torch.Tensor:
        leaf = student.clone().requires_grad_()
        LOSSES[name].function(leaf, teacher, temperature=temperature).sum().backward()
        return leaf.grad

    torch.testing.assert_close(slope(1.0), slope(10.0), rtol=0.05, atol=2e-5)
