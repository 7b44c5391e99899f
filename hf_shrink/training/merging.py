"""Adapters added to the weights below them: in float with a check, or quantised again with what that costs."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.loading.dequantize import forget_quantization
from hf_shrink.measurement.subjects import at_rest
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.bitsandbytes import dequantize_in_place, stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.mixed import store_mixed
from hf_shrink.quantization.plan import KEPT, keep_plan
from hf_shrink.quantization.quantize import quantize
from hf_shrink.repacking import refuse_repacked
from hf_shrink.targets import oriented

TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""How much of the largest output a merged model may answer differently: float32 sums in another order; or what lies between
the layers was rounded to 16 bits, and is no more."""


def merged(adapted: PeftModel, inputs: Mapping[str, Tensor]) -> PreTrainedModel:
    """A float32 copy of the model with its adapters added to the weights, as large as before it was quantised.

    Checked on ``inputs``: its first output is that of the model with adapters, whose quantised layers multiply in float by
    the weights that they store, within ``TOLERANCE`` of the largest value, ``HALF_TOLERANCE`` for a model in 16 bits. (The
    kernels of 8 bits round what they multiply as well, which no weight can take up.)

    Args:
        adapted: LoRA on a quantised model; stays as it is.
        inputs: a batch, keyword arguments of the forward pass.

    Raises:
        IntegrityError: the outputs differ by more, or 4-bit weights have been repacked for the CPU.
        MismatchError: no adapters of the kind that can be merged.
    """
    whole: Any = adapted.get_base_model()
    layers: dict[str, Any] = {name: layer for name, layer in whole.named_modules() if isinstance(layer, LoraLayer)}
    if not layers or not stored_bits(whole):
        raise MismatchError("merge: no LoRA on quantised layers; pass what with_correction or with_adapters returned.")
    refuse_repacked(whole, "merge")
    with torch.no_grad():
        added = {name: layer.get_delta_weight("default").float() for name, layer in layers.items()}
    plain = copy.deepcopy(whole)
    for name in layers:
        plain.set_submodule(name, plain.get_submodule(name).base_layer)
    dequantize_in_place(plain, torch.float32)
    for name, change in added.items():
        layer: Any = plain.get_submodule(name)
        layer.weight.data += change.T if isinstance(layer, Conv1D) else change
    forget_quantization(plain)
    batch = {name: tensor.to(whole.device) for name, tensor in inputs.items()}
    with at_rest(whole), _float_products(whole):
        expected = whole(**batch)[0].double()
    with at_rest(plain):
        found = plain(**batch)[0].double()
    apart = float((found - expected).abs().max() / expected.abs().max())
    most = TOLERANCE if whole.dtype == torch.float32 else HALF_TOLERANCE
    if not apart <= most:
        raise IntegrityError(f"merge: outputs differ by {apart:.2g} of the largest one, more than {most:g}.")
    plain.eval()
    assert isinstance(plain, PreTrainedModel)
    return plain


def stored_again(model: PreTrainedModel, small: PreTrainedModel, config: QuantizationConfig) -> PreTrainedModel:
    """``model`` quantised as ``small`` is: the same layers, the same bits.

    Args:
        model: what ``merged`` gave; stays as it is.
        small: the model that it began as, with or without adapters.
        config: that ``small`` was made with.
    """
    if config.bits != "auto":
        return quantize(model, config)
    plan = keep_plan(model, config)
    bits = {name.removesuffix(".base_layer"): width for name, width in stored_bits(small).items()}
    again = store_mixed(model, config, plan, {name: bits.get(name, 16) for name in plan.quantized})
    again.config.layer_bits = small.config.layer_bits
    setattr(again.config, KEPT, getattr(small.config, KEPT))
    return again


@torch.no_grad()
def weight_error(model: PreTrainedModel, small: nn.Module) -> float:
    """How far the weights of quantised layers are off, adapters counted: ``||W - W'|| / ||W||`` over all of them together.

    Args:
        model: in float.
        small: quantised, with or without adapters.
    """
    off = whole = 0.0
    for name, width in stored_bits(small).items():
        outer = name.removesuffix(".base_layer")
        weight = oriented(model.get_submodule(outer)).double()  # type: ignore[arg-type]
        found = backend_for(width).restored(small.get_submodule(name)).double()
        if outer != name:
            layer: Any = small.get_submodule(outer)
            found = found + layer.get_delta_weight("default").double()
        off += float((weight - found).square().sum())
        whole += float(weight.square().sum())
    return float((off / whole) ** 0.5)


@contextmanager
def _float_products(model: nn.Module) -> Iterator[None]:
    """While it lasts, quantised layers multiply in float32 by the weights that they store."""
    layers = {name: model.get_submodule(name) for name in stored_bits(model)}
    for name, width in stored_bits(model).items():
        layer: Any = layers[name]
        weight = backend_for(width).restored(layer).float()
        bias = None if layer.bias is None else layer.bias.float()
        layer.__dict__["forward"] = lambda x, w=weight, b=bias: F.linear(x.float(), w, b).to(x.dtype)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)
