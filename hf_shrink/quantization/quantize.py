"""Quantise a model in memory."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.finite import check_finite
from hf_shrink.own_forward import own_forward, unwrap_forward
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import check_tables, round_embeddings
from hf_shrink.quantization.mixed import Mixed, quantize_mixed
from hf_shrink.quantization.plan import KEPT, keep_plan


def quantize(
    model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Mapping[str, Tensor]] | None = None
) -> PreTrainedModel:
    """A copy of ``model`` stored in fewer bits, in eval mode; ``model`` stays as it is.

    ``save_pretrained`` of the copy writes a folder that plain transformers loads. Heads, poolers, tied and unfit layers are
    kept in float: see ``keep_plan``.

    Args:
        model: a model with floating-point weights; layers may have any widths.
        config: how many bits, and what goes with them.
        calibration: batches (keyword arguments of the forward pass) for ``bits: auto``, and for nothing else.

    Raises:
        RecipeError: quantised already, nothing is left to quantise, a backend that writes files, or a calibration that is
            missing or that nobody reads.
        NonFiniteError: a weight is NaN or infinite, or too large for the new precision.
        MismatchError: the model carries adapters.
        ResourceError: bitsandbytes is missing.
    """
    if config.backend == "onnx":
        raise RecipeError("quantize: backend: onnx makes files, not a model in memory; call export_onnx.")
    if config.bits == "auto":
        return quantize_by_budget(model, config, calibration).model
    if calibration is not None:
        raise RecipeError(f"quantize: calibration would be ignored with bits: {config.bits}; leave it out, or use bits: auto.")
    _refuse(model)
    check_finite(model, "quantization")
    if config.bits == 16:
        check_tables(model, config)
        result = copy.deepcopy(model)
        result.eval()  # type: ignore[no-untyped-call]
        if config.dtype is not None:
            cast_in_place(result, getattr(torch, config.dtype))
    else:
        plan = keep_plan(model, config)
        check_tables(model, config)
        result = backend_for(config.bits).store(model, config, quantized=plan.quantized, kept=tuple(plan.kept))
        setattr(result.config, KEPT, dict(plan.kept))
    unwrap_forward(result)
    round_embeddings(result, config)
    check_finite(result, f"quantization to {config.dtype or f'{config.bits} bits'}")
    return result


def quantize_by_budget(
    model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Mapping[str, Tensor]] | None
) -> Mixed:
    """``quantize`` for ``bits: auto``, with the table of what was decided; errors as there."""
    if calibration is None:
        raise RecipeError("quantize: bits: auto measures what each layer loses; give batches as calibration.")
    _refuse(model)
    check_finite(model, "quantization")
    with own_forward(model):  # what is measured is what will be stored, and the rounding of 16 bits is louder than that of 8
        mixed = quantize_mixed(model, config, list(calibration))
    check_finite(mixed.model, "quantization to bits: auto")
    return mixed


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
    if {*stored_bits(model).values()} == {4, 8}:
        return f"{method}, 4 and 8 bits"
    bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else stored.get("bits")
    return f"{method}, {bits} bits" if bits else str(method)


def _refuse(model: PreTrainedModel) -> None:
    if carries_adapter(model):
        raise MismatchError(
            f"quantization: {type(model).__name__} carries an adapter, which would be rounded with the rest.\n"
            "Quantise the model without it and put it on the result; of a PeftModel, merge_and_unload() first."
        )
    if (existing := existing_quantization(model)) is not None:
        raise RecipeError(
            f"quantization: the model is quantised already ({existing}); twice would lose more and save nothing.\n"
            "Drop the quantization section, or start from the model's float weights."
        )
