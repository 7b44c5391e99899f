"""Weights in another floating-point precision, as from_pretrained would load them."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def cast_in_place(model: PreTrainedModel, dtype: torch.dtype, *, leave: Sequence[Tensor] = ()) -> None:
    """Cast what a checkpoint holds, and only that: a rotary table that is worked out anew at loading stays in float32.

    Args:
        model: its tensors are changed; what is tied stays tied.
        dtype: the new precision; what the model's class keeps in float32 stays so.
        leave: tensors of the model that are not to be touched.
    """
    apart = {id(tensor) for tensor in leave}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in apart:
            tensor.data = tensor.data.to(dtype_of(model, name, dtype))
    model.config.dtype = dtype


def dtype_of(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """The precision that from_pretrained gives the tensor ``name`` when asked for ``dtype``."""
    for pattern, precise in model._get_dtype_plan(dtype).items():
        if re.search(str(pattern).replace("*", ".*"), name):
            assert isinstance(precise, torch.dtype)
            return precise
    return dtype
