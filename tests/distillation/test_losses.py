"""The distillation losses: hand values, and laws for every entry of the table."""

import math

import pytest
import torch

from hf_shrink.distillation.losses import LOSSES
from tests.distillation.references import LABELS, REFERENCES, inputs_for, options_for

names = pytest.mark.parametrize("name", sorted(LOSSES))
soft = pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if "temperature" in loss.takes))
NOT_ZERO = {"soft_cross_entropy"}
"""Losses whose least value is the teacher's entropy."""


def value(name, student, teacher, temperature=1.0, labels=LABELS):
    return LOSSES[name].function(student, teacher, **options_for(name, temperature, labels))


def test_forward_kl_matches_the_two_class_formula():
    """Arguments the wrong way round train too, towards another student."""
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    torch.testing.assert_close(value("forward_kl", student, teacher), torch.tensor([by_hand]))


def test_reverse_kl_matches_the_two_class_formula():
    """The same for the other direction."""
    teacher, student = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    torch.testing.assert_close(value("reverse_kl", student, teacher), torch.tensor([by_hand]))


@names
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_each_loss_equals_its_formula_in_float64(name, temperature):
    """A mean where a sum belongs, or the square forgotten, still trains."""
    for scale in (0.3, 3.0):
        student, teacher = inputs_for(name, scale=scale)
        expected = REFERENCES[name](student.double(), teacher.double(), temperature)
        found = value(name, student, teacher, temperature)
        assert found.shape == (3, 4) and expected.abs().max() > 1e-3
        rounding = 2e-5 if name == "decoupled_kd" else 1e-6  # its terms cancel before they are taken 8 * temperature**2 times
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=rounding)


@names
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_zero_and_flat_where_student_and_teacher_agree(name, temperature):
    """A cross-entropy written by mistake trains just as well, but its floor is the teacher's entropy, not zero."""
    teacher, _ = inputs_for(name)
    student = teacher.clone().requires_grad_()
    values = value(name, student, teacher, temperature)
    values.sum().backward()
    if name not in NOT_ZERO:
        torch.testing.assert_close(values, torch.zeros(3, 4), atol=2e-6, rtol=0)
    if LOSSES[name].reads in ("attentions", "queries", "keys", "values"):
        student.grad -= student.exp() * student.grad.sum(-1, keepdim=True)  # through the softmax that gave the probabilities
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=5e-6, rtol=0)


@names
def test_never_below_zero_and_above_it_where_they_differ(name):
    """A sign mistake makes the student flee from the teacher."""
    for seed in range(5):
        assert value(name, *inputs_for(name, seed=seed), temperature=2.0).min() > 0


@names
def test_a_step_against_the_gradient_brings_the_student_closer(name):
    """A gradient of the wrong sign or of nothing leaves the values right and the student where it is."""
    student, teacher = inputs_for(name)
    leaf = student.clone().requires_grad_()
    before = value(name, leaf, teacher)
    before.sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    assert value(name, student - 1e-3 * leaf.grad, teacher).sum() < before.sum()


@names
def test_the_teacher_gets_no_gradient(name):
    """A teacher that moves towards the student makes the loss fall for the wrong reason."""
    student, teacher = (x.requires_grad_() for x in inputs_for(name))
    value(name, student, teacher, temperature=2.0).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@names
def test_each_position_is_on_its_own(name):
    """A mean over the batch hidden inside a loss would escape the mask."""
    student, teacher = inputs_for(name)
    whole = value(name, student, teacher, 1.5)
    alone = [value(name, student[i : i + 1], teacher[i : i + 1], 1.5, LABELS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone))


@names
def test_half_precision_is_compared_in_float32(name):
    """In float16 the tails of a softmax over a vocabulary vanish."""
    student, teacher = (x.half() for x in inputs_for(name))
    found = value(name, student, teacher)
    assert found.dtype == torch.float32 and torch.equal(found, value(name, student.float(), teacher.float()))


@names
def test_gradients_stay_finite_where_the_models_are_sure(name):
    """A probability of 0 under a logarithm is NaN in every weight one step later."""
    student, teacher = (x.requires_grad_() for x in inputs_for(name, scale=60.0))
    found = value(name, student, teacher)
    found.sum().backward()
    assert found.isfinite().all() and student.grad.isfinite().all()


@soft
def test_the_gradient_keeps_its_size_when_the_temperature_rises(name):
    """Without the square a temperature of 10 silently divides the learning rate by about 100."""
    student, teacher = inputs_for(name, scale=0.01)

    def slope(temperature: float) -> torch.Tensor:
        leaf = student.clone().requires_grad_()
        value(name, leaf, teacher, temperature).sum().backward()
        return leaf.grad

    assert slope(1.0).abs().max() > 1e-4
    torch.testing.assert_close(slope(1.0), slope(10.0), rtol=0.05, atol=6e-3 if name in ("total_variation", "uld") else 2e-4)


@pytest.mark.parametrize(("beta", "limit", "scale"), [(1e-4, "forward_kl", 1e-4), (1 - 1e-4, "reverse_kl", 1e-4)])
def test_jensen_shannon_nears_the_two_divergences_at_its_ends(beta, limit, scale):
    """A beta on the wrong side turns a mode-covering loss into a mode-seeking one."""
    student, teacher = inputs_for("jsd")
    near = LOSSES["jsd"].function(student.double().float(), teacher, beta=beta) / scale
    torch.testing.assert_close(near, value(limit, student, teacher), rtol=2e-2, atol=5e-3)


def test_a_large_temperature_compares_centred_logits():
    """The limit of arXiv:1503.02531, section 2.1: half the squared difference of centred logits, divided by the classes."""
    student, teacher = inputs_for("forward_kl")
    centred = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    one, other = centred
    expected = (one - other).square().mean(-1) / 2
    torch.testing.assert_close(value("forward_kl", student, teacher, 200.0), expected, rtol=2e-2, atol=2e-3)


def test_soft_cross_entropy_has_the_gradient_of_forward_kl():
    """They differ by the teacher's entropy alone."""
    slopes = []
    for name in ("soft_cross_entropy", "forward_kl"):
        student, teacher = inputs_for("forward_kl")
        student.requires_grad_()
        value(name, student, teacher, 2.0).sum().backward()
        slopes.append(student.grad)
    torch.testing.assert_close(*slopes)


def test_every_loss_has_a_second_implementation():
    """A new entry must not slip past the comparison."""
    assert REFERENCES.keys() == LOSSES.keys()
