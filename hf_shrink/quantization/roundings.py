"""Which weights of a model will be stored in fewer bits, and how: what a training that is to see the rounding rounds."""

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import check_tables, tables
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
        quantization: for all that ``quantize`` or ``export_onnx`` would round, or by layer for bitsandbytes; there the
            embeddings follow from the layers' ``embeddings``.

    Returns:
        By module name: projections, and embeddings that are rounded as well.

    Raises:
        RecipeError: no rounding of weights, nothing to quantise, a model that is not exported, or as ``refuse_unseen``
            and ``check_tables``.
        MismatchError: a layer that the model does not have, or weights that are no float32: steps smaller than their
            precision would be lost.
    """
    if isinstance(quantization, QuantizationConfig):
        _check(quantization)
        found = dict.fromkeys(keep_plan(model, quantization).quantized, quantization)
        if quantization.backend == "onnx":
            signature_of(model)
        found |= rounded_tables(model, quantization)
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


def rounded_tables(model: PreTrainedModel, config: QuantizationConfig) -> dict[str, QuantizationConfig]:
    """The embeddings of ``model`` that ``config`` rounds, by module name: each shared one once.

    Raises:
        RecipeError: as ``check_tables``.
    """
    if config.backend == "onnx":
        names: Iterable[str] = tables_of(model)
    else:
        check_tables(model, config)
        names = tables(model) if config.embeddings != "keep" else ()
    return {name.removesuffix(".weight"): config for name in names}


def _named(model: PreTrainedModel, quantization: Roundings) -> dict[str, QuantizationConfig]:
    for config in quantization.values():
        _check(config)
        if config.backend == "onnx":
            raise RecipeError("quantization: a graph is of a whole model; pass one config, with skip_modules for what stays.")
    if len(kinds := sorted({config.embeddings for config in quantization.values()})) > 1:
        raise RecipeError(f"quantization.embeddings: {' and '.join(kinds)} for one model; give every layer the same.")
    layers, looked_up = projections(model), dict[str, QuantizationConfig]()
    for config in [*quantization.values()][:1]:
        looked_up = rounded_tables(model, config)
    for name, config in quantization.items():
        if name not in layers and name not in looked_up:
            raise MismatchError(f"quantization: {type(model).__name__} has no projection {name!r}; name layers in full.")
        why = backend_for(int(config.bits)).unfit(layers[name], config) if name in layers else None
        if why is not None:
            raise MismatchError(f"quantization: {name}: {why}; leave it out.")
    return looked_up | dict(quantization)


def _check(config: QuantizationConfig) -> None:
    if config.bits not in (4, 8):
        way = "; for auto pass {layer: config}, with the bits that `quantize` gave" if config.bits == "auto" else ""
        raise RecipeError(
            f"quantization: weights are trained as they are stored in 8 or 4 bits, got bits {config.bits}.\n"
            f"Use bits: 8 or 4{way}."
        )
    refuse_unseen(config)


def refuse_unseen(config: QuantizationConfig) -> None:
    """A RecipeError where ``config`` rounds more than layers and embeddings: training would not see it, nor who judges it."""
    if config.dtype not in (None, "float32"):
        raise RecipeError(
            f"quantization.dtype: {config.dtype} rounds norms, biases and heads as well, and training sees layers and "
            "embeddings alone: what is judged would not be what is stored.\nRemove it, or use recovery.method: adapters."
        )
