"""Which weights of a model will be stored in fewer bits, and how: what a training that is to see the rounding rounds."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_graph import signature_of
from hf_shrink.quantization.onnx_size import tables_of
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import projections

Roundings = Mapping[str, QuantizationConfig]
"""Layer or embedding -> how it will be stored."""


def roundings_of(model: PreTrainedModel, quantization: QuantizationConfig | Roundings) -> dict[str, QuantizationConfig]:
    """How each layer and each embedding of ``model`` will be stored: those that the safety plan quantises, or those named.

    Args:
        model: in float32, without adapters.
        quantization: for all that ``quantize`` or ``export_onnx`` would round, or by layer for bitsandbytes.

    Returns:
        By module name: projections, and for onnx the embeddings that its graph looks up in 8 bits.

    Raises:
        RecipeError: no rounding of weights, nothing to quantise, a model that is not exported, or as ``refuse_unseen``.
        MismatchError: a layer that the model does not have, or weights that are no float32: steps smaller than their
            precision would be lost.
    """
    if isinstance(quantization, QuantizationConfig):
        _check(quantization)
        found = dict.fromkeys(keep_plan(model, quantization).quantized, quantization)
        if quantization.backend == "onnx":
            signature_of(model)
            found |= {name.removesuffix(".weight"): quantization for name in tables_of(model)}
    else:
        found = _named(model, quantization)
    for name in found:
        dtype = model.get_parameter(f"{name}.weight").dtype
        if dtype != torch.float32:
            raise MismatchError(
                f"quantization: {name} is in {str(dtype).removeprefix('torch.')}, and steps smaller than "
                "its precision would be lost.\nLoad the model in float32; `bf16: true` computes in 16 bits."
            )
    return found


def _named(model: PreTrainedModel, quantization: Roundings) -> dict[str, QuantizationConfig]:
    layers = projections(model)
    if unknown := [name for name in quantization if name not in layers]:
        raise MismatchError(f"quantization: {type(model).__name__} has no projection {unknown[0]!r}; name layers in full.")
    for name, config in quantization.items():
        _check(config)
        if config.backend == "onnx":
            raise RecipeError("quantization: a graph is of a whole model; pass one config, with skip_modules for what stays.")
        if (why := backend_for(int(config.bits)).unfit(layers[name], config)) is not None:
            raise MismatchError(f"quantization: {name}: {why}; leave it out.")
    return dict(quantization)


def _check(config: QuantizationConfig) -> None:
    if config.bits not in (4, 8):
        way = "; for auto pass {layer: config}, with the bits that `quantize` gave" if config.bits == "auto" else ""
        raise RecipeError(
            f"quantization: weights are trained as they are stored in 8 or 4 bits, got bits {config.bits}.\n"
            f"Use bits: 8 or 4{way}."
        )
    refuse_unseen(config)


def refuse_unseen(config: QuantizationConfig) -> None:
    """A RecipeError where ``config`` rounds more than the weights of layers: training would not see it, nor who judges it."""
    for name, usual in (("embeddings", "keep"), ("dtype", None), ("compute_dtype", "float32")):
        if (value := getattr(config, name)) not in (usual, "float32"):
            raise RecipeError(
                f"quantization.{name}: {value} rounds more than weights of layers, and training sees those alone: what is "
                "judged would not be what is stored.\nRemove it, or use recovery.method: adapters."
            )
