"""Weights that are not numbers are found in the weights: attention on the CPU can hide them from the logits."""

import torch
from torch import nn

from hf_shrink.errors import NonFiniteError


def check_finite(model: nn.Module, where: str) -> None:
    """Look at every floating-point weight and buffer of ``model``.

    Args:
        model: anywhere but on meta.
        where: what the model is, for the error: ``teacher 'org/name'``.

    Raises:
        NonFiniteError: names the first tensor with a NaN or an infinity, how many of its numbers are bad, how many tensors are.
    """
    bad: dict[str, tuple[int, int]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # One number tells: min and max carry a NaN along. A mask of a large tensor is made only where something is wrong.
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.detach().aminmax())).all():
            bad[name] = (int((~torch.isfinite(tensor)).sum()), tensor.numel())
    if bad:
        name, (wrong, total) = next(iter(bad.items()))
        more = f" {len(bad) - 1} more tensors have some too." if len(bad) > 1 else ""
        raise NonFiniteError(
            f"{where}: {wrong} of {total} values of {name} are NaN or infinite.{more}\nUse a checkpoint that is whole."
        )
