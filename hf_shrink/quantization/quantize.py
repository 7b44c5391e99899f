"""Quantise a model in memory."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.finite import check_finite
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan


def quantize(model: PreTrainedModel, config: QuantizationConfig) -> PreTrainedModel:
    """A copy of ``model`` stored in fewer bits, in eval mode; ``model`` stays as it is.

    ``save_pretrained`` of the copy writes a folder that plain transformers loads. Heads, poolers, tied and unfit layers are
    kept in float: see ``keep_plan``.

    Args:
        model: a model with floating-point weights; layers may have any widths.
        config: how many bits, and what goes with them.

    Raises:
        RecipeError: quantised already, nothing is left to quantise, or a backend that writes files.
        NonFiniteError: a weight is NaN or infinite, or too large for the new precision.
        ResourceError: bitsandbytes is missing.
    """
    if config.backend == "onnx":
        raise RecipeError("quantize: backend: onnx makes files, not a model in memory; call export_onnx.")
    _refuse_quantized(model)
    check_finite(model, "quantization")
    if config.bits == 16:
        assert config.dtype is not None
        result = copy.deepcopy(model)
        result.eval()  # type: ignore[no-untyped-call]
        cast_in_place(result, getattr(torch, config.dtype))
    else:
        plan = keep_plan(model, config)
        result = backend_for(config.bits).store(model, config, quantized=plan.quantized, kept=tuple(plan.kept))
    check_finite(result, f"quantization to {config.dtype or f'{config.bits} bits'}")
    return result


def existing_quantization(model: PreTrainedModel) -> str | None:
    """``bitsandbytes, 8 bits`` for a model that is quantised, whoever did it; None for one that is not."""
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return None
    stored: dict[str, Any] = dict(found) if isinstance(found, dict) else found.to_dict()
    if stored.get("quant_method") == "hf_shrink":  # shapes, and within them perhaps a quantisation
        stored = stored.get("bitsandbytes") or {}
    if not stored:
        return None
    method = getattr(stored.get("quant_method"), "value", stored.get("quant_method"))
    bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else stored.get("bits")
    return f"{method}, {bits} bits" if bits else str(method)


def _refuse_quantized(model: PreTrainedModel) -> None:
    if (existing := existing_quantization(model)) is not None:
        raise RecipeError(
            f"quantization: the model is quantised already ({existing}); twice would lose more and save nothing.\n"
            "Drop the quantization section, or start from the model's float weights."
        )
