"""Losses over a vocabulary without its logits: a few rows at a time, the gradients formed on the way forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_shrink.distillation.merged import Kept

CHUNK = 256
"""Rows whose logits exist at one time: enough for a matrix product at full speed."""

_PIECE = 2**20
"""About how many logits are scored at one time: few enough for the caches of a CPU."""

Answers = Tensor | Kept
"""A teacher's, one a row: float32 logits ``[n, words]``, or its likeliest words."""

Scorer = Callable[[Tensor, Any, slice], Tensor]
"""``(student_logits, answers, rows) -> sums``: float32 logits ``[n, words]`` of these rows to the sum of each term."""


def fused_sum(
    hidden: Tensor,
    head: torch.nn.Linear,
    taught: Callable[[slice], Answers],
    score: Scorer,
    factors: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """``(factors * sums).sum()`` over all rows, and the sums, as if all logits had been computed.

    Logits of ``chunk`` rows exist at a time. Their gradient goes at once into those of ``hidden`` and of the head, which wait
    for ``backward`` (the scheme of arXiv:2410.10989, section 3). The products are taken in the precision they would have in
    the model, under autocast too, except that float16 becomes float32; all else is float32.

    Args:
        hidden: what the student's head reads, ``[rows, width]``; receives a gradient.
        head: from width to words, with or without bias; receives gradients where it asks for them.
        taught: what the teacher says about some rows, asked for ``chunk`` rows at a time: a ``LastProduct`` of its own, or
            answers that are there already.
        score: the terms of the loss on a piece of the logits.
        factors: float32, ``[terms]``: what each sum is worth in the total.
        chunk: above 0, rows.

    Returns:
        The total, a float32 scalar that can be differentiated once, and the sums ``[terms]``, which cannot.
    """
    total: Tensor
    sums: Tensor
    total, sums = _FusedSum.apply(hidden, head.weight, head.bias, taught, score, factors, chunk)  # type: ignore[no-untyped-call]
    return total, sums


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        taught: Callable[[slice], Answers],
        score: Scorer,
        factors: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wanted, asks = (hidden, weight, bias), ctx.needs_input_grad[:3]
        slopes = [_zeros(t) if t is not None and asked else None for t, asked in zip(wanted, asks, strict=True)]
        sums, device = torch.zeros_like(factors), hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            student = LastProduct(hidden, weight, bias, dtype)
            for start in range(0, len(hidden), chunk):
                rows = slice(start, min(start + chunk, len(hidden)))
                logits = student(rows)
                sums += _score(logits, taught(rows), start, score, factors, slopes=any(asks))
                if any(asks):
                    student.carry(logits, rows, slopes)
        ctx.slopes, ctx.dtypes = slopes, [None if t is None else t.dtype for t in wanted]
        ctx.mark_non_differentiable(sums)
        return sums @ factors, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.slopes is None:
            raise RuntimeError("fused_sum: backward a second time; its gradients are used up by the first.")
        slopes, ctx.slopes = ctx.slopes, None
        scaled = (None if s is None else s.mul_(gradients[0]).to(d) for s, d in zip(slopes, ctx.dtypes, strict=True))
        return *scaled, None, None, None, None


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _score(student: Tensor, teacher: Answers, start: int, score: Scorer, factors: Tensor, *, slopes: bool) -> Tensor:
    """The sums over some rows; with ``slopes`` the student's logits are overwritten with the total's gradient by them."""
    sums, step = torch.zeros_like(factors), max(_PIECE // student.shape[-1], 1)
    for begin in range(0, len(student), step):
        end = min(begin + step, len(student))
        with torch.enable_grad():
            logits = student[begin:end].detach().requires_grad_(slopes)
            found = score(logits, teacher[begin:end], slice(start + begin, start + end))
            slope = torch.autograd.grad(found @ factors, logits)[0] if slopes else None
        sums += found.detach()
        if slope is not None:
            student[begin:end] = slope
    return sums


class LastProduct:
    """A model's last product, some rows at a time into one buffer.

    Args:
        hidden: what the head reads, ``[rows, width]``.
        weight: of the head, ``[words, width]``.
        bias: ``[words]``, or None.
        dtype: precision of the product; None for that of ``weight``. float16 becomes float32.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> None:
        dtype = weight.dtype if dtype is None else dtype
        dtype = torch.float32 if dtype == torch.float16 else dtype  # small gradients vanish in float16
        self.hidden, self.weight = hidden.detach().to(dtype), weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.buffer = torch.empty(0, len(weight), dtype=torch.float32, device=hidden.device)

    def __call__(self, rows: slice) -> Tensor:
        """Float32 logits of ``rows``; they are overwritten by the next call."""
        count = rows.stop - rows.start
        if len(self.buffer) < count:
            self.buffer = self.buffer.new_empty(count, len(self.weight))
        logits = self.buffer[:count]
        if self.weight.dtype != torch.float32:
            return logits.copy_(F.linear(self.hidden[rows], self.weight, self.bias))
        torch.mm(self.hidden[rows], self.weight.T, out=logits)
        return logits if self.bias is None else logits.add_(self.bias)

    def carry(self, slope: Tensor, rows: slice, slopes: list[Tensor | None]) -> None:
        """Add to the gradients of hidden states, weight and bias what the gradient of the logits of ``rows`` means for them."""
        by_hidden, by_weight, by_bias = slopes
        if by_bias is not None:
            by_bias += slope.sum(dim=0)
        slope = slope.to(self.weight.dtype)
        if by_hidden is not None:
            by_hidden[rows] = slope @ self.weight
        if by_weight is not None and slope.dtype == torch.float32:
            by_weight.addmm_(slope.T, self.hidden[rows])
        elif by_weight is not None:
            by_weight += slope.T @ self.hidden[rows]
