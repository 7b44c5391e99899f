"""``dequantize`` for users: back to floats, whoever quantised the model, in layers of the kind that they were."""

import copy
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.loading.conversions import drop_quantizer_conversions
from hf_shrink.loading.save import record_shapes
from hf_shrink.quantization.bitsandbytes import dequantize_in_place, stored_bits
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.embeddings import RECORD
from hf_shrink.quantization.plan import KEPT
from hf_shrink.quantization.quantize import existing_quantization
from hf_shrink.repacking import refuse_repacked


def dequantize(model: PreTrainedModel, *, dtype: Literal["float32", "bfloat16", "float16"] | None = None) -> PreTrainedModel:
    """A float copy of ``model`` with the numbers that it multiplies by, in eval mode; ``model`` stays as it is.

    For models that bitsandbytes holds in 8 or 4 bits, also those that plain transformers loaded: its own
    ``model.dequantize()`` leaves ``nn.Linear`` in the place of GPT-2's transposed layers, and the result cannot be saved.

    Args:
        model: with quantised layers, or embeddings that lie in fewer bits in the file.
        dtype: of every weight; None takes the model's own.

    Raises:
        RecipeError: nothing in it is quantised.
        MismatchError: quantised by another library, or with adapters, which would be lost.
        IntegrityError: 4-bit weights that an evaluation has repacked for the CPU.
    """
    where = f"dequantize: {type(model).__name__}"
    if carries_adapter(model):
        raise MismatchError(f"{where}: carries an adapter; take it off with unload(), or merge it where it was trained.")
    refuse_repacked(model, where)
    if not stored_bits(model):
        if (theirs := existing_quantization(model)) is not None:
            raise MismatchError(f"{where}: quantised by {theirs}, which only its own library can undo.")
        if not hasattr(model.config, RECORD):
            raise RecipeError(f"{where}: no layer is quantised; use the model as it is.")
    plain: Any = copy.deepcopy(model)
    if stored_bits(plain):
        dequantize_in_place(plain, plain.dtype if dtype is None else getattr(torch, dtype))
    elif dtype is not None:
        cast_in_place(plain, getattr(torch, dtype))
    forget_quantization(plain)
    drop_quantizer_conversions(plain)
    record_shapes(plain)
    plain.eval()
    assert isinstance(plain, PreTrainedModel)
    return plain


def forget_quantization(model: Any) -> None:
    """Take away what transformers, peft and we note on a quantised model, from one that is none any more."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model, "peft_config"),
        (model, "_hf_peft_config_loaded"),
        (model.config, "quantization_config"),
        (model.config, "layer_bits"),
        (model.config, RECORD),
        (model.config, KEPT),
    ):
        if name in vars(owner):
            delattr(owner, name)
    model.config._is_quantized = False
