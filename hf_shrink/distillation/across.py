"""A loss across vocabularies: nothing is known of which word is which, only how likely the likeliest, the second, ... are."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIECE = 2**22
"""About how many logits of a model are sorted at one time: what a sort keeps for its gradient is three times their size."""


def uld(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Universal logit distillation at each position, times ``temperature`` (arXiv:2402.12030).

    The sum of absolute differences of the probabilities, each model's sorted from the highest down and the shorter list filled
    up with zeros: the Wasserstein distance where moving any word to any other costs the same. From 0, where both are as sure
    of as many words, to ``2 * temperature``. It does not say which words; the task loss has to.

    Rows are sorted a few at a time, and once more for the gradient, so that no sort of all of them is ever in memory.

    Args:
        student_logits: finite floats, ``[..., words of the student]``.
        teacher_logits: ``[..., words of the teacher]``; receives no gradient.
        temperature: above 0, no unit. One factor of it keeps the gradient's size, as in ``total_variation``.

    Returns:
        float32, ``[...]``.
    """
    ours, theirs = student_logits.flatten(0, -2), teacher_logits.detach().flatten(0, -2)
    rows = max(PIECE // max(ours.shape[-1], theirs.shape[-1]), 1)
    pieces = list(zip(torch.split(ours, rows), torch.split(theirs, rows), strict=True))
    if len(pieces) == 1:
        found = [_of_rows(*pieces[0], temperature)]
    else:
        found = [checkpoint(_of_rows, *piece, temperature, use_reentrant=False) for piece in pieces]
    return torch.cat(found).view(student_logits.shape[:-1])


def _of_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of rows ``[rows, words]``."""
    ours, theirs = (
        (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True).values for logits in (student, teacher)
    )
    more = theirs.shape[-1] - ours.shape[-1]
    ours, theirs = F.pad(ours, (0, max(more, 0))), F.pad(theirs, (0, max(-more, 0)))
    return temperature * (ours - theirs).abs().sum(dim=-1)
