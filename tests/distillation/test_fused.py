"""The fused loss against all logits at once, element by element."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_shrink.distillation.fused import LastProduct, fused_sum
from hf_shrink.distillation.losses import LOSSES

ROWS, WIDTH, TEACHER_WIDTH, WORDS = 23, 12, 10, 31


def setting(bias, dtype=torch.float32):
    torch.manual_seed(3)
    head, teacher_head = (
        nn.Linear(WIDTH, WORDS, bias=bias, dtype=dtype),
        nn.Linear(TEACHER_WIDTH, WORDS, bias=bias, dtype=dtype),
    )
    hidden = 3 * torch.randn(ROWS, WIDTH, dtype=dtype)
    teacher_hidden = 3 * torch.randn(ROWS, TEACHER_WIDTH, dtype=dtype)
    labels = torch.randint(WORDS, (ROWS,))
    labels[::5] = -100
    return hidden.requires_grad_(), head, teacher_hidden, teacher_head, labels


def taught(hidden, head):
    return LastProduct(hidden, head.weight, head.bias)


def scorer(labels, names=("forward_kl", "reverse_kl"), temperature=2.0):
    def score(student, teacher, rows):
        task = F.cross_entropy(student, labels[rows], ignore_index=-100, reduction="sum")
        return torch.stack([task, *(LOSSES[n].function(student, teacher, temperature=temperature).sum() for n in names)])

    return score


FACTORS = torch.tensor([0.3, 0.5, 0.2]) / ROWS


@pytest.mark.parametrize("chunk", [1, 7, 23, 256])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(bias, chunk):
    """A chunk counted twice, or a last short one lost, only makes a gradient a little wrong."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(bias)
    total, sums = fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS, chunk=chunk)
    (5.0 * total).backward()
    ours = [hidden.grad, head.weight.grad, *([head.bias.grad] if bias else [])]
    hidden, head, teacher_hidden, teacher_head, labels = (
        value.double() if isinstance(value, nn.Module) or value.is_floating_point() else value for value in setting(bias)
    )
    hidden = hidden.detach().requires_grad_()
    student, teacher = head(hidden), teacher_head(teacher_hidden).detach()
    ce = F.cross_entropy(student, labels, ignore_index=-100, reduction="sum")
    p, q = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    by_hand = torch.stack([ce, 4 * (q * (q / p).log()).sum(), 4 * (p * (p / q).log()).sum()])
    (5.0 * (by_hand @ FACTORS.double())).backward()
    torch.testing.assert_close(sums.double(), by_hand.detach(), rtol=1e-5, atol=0)
    for mine, full in zip(
        ours, [hidden.grad, head.weight.grad, head.bias.grad] if bias else [hidden.grad, head.weight.grad], strict=True
    ):
        assert full.abs().max() > 1e-2
        torch.testing.assert_close(mine.double(), full, rtol=1e-5, atol=1e-7)
    assert teacher_head.weight.grad is None


def test_scored_in_pieces_nothing_changes(monkeypatch):
    """Rows of a chunk are scored a few at a time: labels must move with them."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(True)
    whole, _ = fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)
    monkeypatch.setattr("hf_shrink.distillation.fused._PIECE", 3 * WORDS)
    parts, _ = fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS, chunk=8)
    whole.backward()
    slope, hidden.grad = hidden.grad, None
    parts.backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(hidden.grad, slope)


def test_a_frozen_head_gets_no_gradient_and_a_frozen_body_none_either():
    """Adapters freeze the head: a gradient for it would cost its size in memory."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(False)
    head.requires_grad_(False)
    fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)[0].backward()
    assert head.weight.grad is None and hidden.grad.abs().sum() > 0
    head.requires_grad_(True)
    hidden = hidden.detach()
    fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)[0].backward()
    assert hidden.grad is None and head.weight.grad.abs().sum() > 0


def test_no_rows_give_zero_and_zero_gradients():
    """A batch in which nothing counts is no NaN."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(True)
    total, _ = fused_sum(hidden[:0], head, taught(teacher_hidden[:0], teacher_head), scorer(labels[:0]), FACTORS)
    total.backward()
    assert total.item() == 0 and head.weight.grad.abs().sum() == 0


def test_autocast_takes_the_product_in_bfloat16_as_a_model_does():
    """Products in float32 would make the fused path another training, and a slow one."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(False)
    teacher_hidden, teacher_head = teacher_hidden.bfloat16(), teacher_head.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, sums = fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)
        expected = scorer(labels)(head(hidden).float(), teacher_head(teacher_hidden).float(), slice(None))
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-6, atol=0)


def test_half_precision_weights_get_gradients_of_their_own_type():
    """A float32 gradient on a bfloat16 weight is refused by autograd."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(True, torch.bfloat16)
    fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)[0].backward()
    assert {hidden.grad.dtype, head.weight.grad.dtype, head.bias.grad.dtype} == {torch.bfloat16}


def test_a_second_backward_is_refused():
    """The gradients are scaled in place: a second time they would be scaled twice."""
    hidden, head, teacher_hidden, teacher_head, labels = setting(False)
    total, sums = fused_sum(hidden, head, taught(teacher_hidden, teacher_head), scorer(labels), FACTORS)
    assert not sums.requires_grad
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()
