"""How large ``model.safetensors`` will be, from shapes alone."""

import json
import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from hf_shrink.quantization.backend import Tensors, backend_for
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.cast import dtype_of
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import embedding_tensors
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import features, projections

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}


OFF = 0.01
"""Part of a file's size by which a prediction may be off before it is worth a sentence."""


def differs(predicted: int, written: float) -> bool:
    """Whether a file is not as large as was said."""
    return abs(predicted - written) > OFF * written


def predicted_bytes(model: PreTrainedModel, config: QuantizationConfig | None) -> int:
    """Bytes of the weights file that saving ``model`` writes after ``quantize(model, config)``.

    Args:
        model: on any device, also meta: only shapes are read. Tied weights are stored once.
        config: None for the model as it is; not with ``bits: auto``.

    Returns:
        Header and weights; off by a few bytes a layer where a number's digits are stored as text.
    """
    if config is None or config.bits == "auto":
        assert config is None, "what auto comes to is for mixed.expected_bytes"
        return _file(_tensors(model, None, {}))
    return _file(_tensors(model, config, dict.fromkeys(keep_plan(model, config).quantized, config.bits)))


def bytes_with(model: PreTrainedModel, config: QuantizationConfig, bits: Mapping[str, int]) -> int:
    """The same for ``bits: auto`` after a choice of ``bits`` for each layer; one without an entry stays in float."""
    return _file(_tensors(model, config, bits))


def adapter_bytes(model: PreTrainedModel, config: QuantizationConfig, names: Sequence[str], rank: int) -> int:
    """Bytes of the file with adapters of ``rank`` on the layers ``names``; narrower layers get what they can have."""
    dtype: torch.dtype = model.dtype if config.dtype is None else getattr(torch, config.dtype)
    layers, tensors = projections(model), dict[str, tuple[torch.dtype, tuple[int, ...]]]()
    for name in names:
        wide, high = features(layers[name])
        most = min(rank, wide, high)
        tensors[f"base_model.model.{name}.lora_A.weight"] = (dtype, (most, wide))
        tensors[f"base_model.model.{name}.lora_B.weight"] = (dtype, (high, most))
    return _file(tensors)


def adapter_parameters(model: PreTrainedModel, names: Sequence[str], rank: int) -> int:
    """Numbers in those adapters."""
    layers = projections(model)
    return sum(min(rank, *features(layers[name])) * sum(features(layers[name])) for name in names)


def _file(tensors: Tensors) -> int:
    payload = sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())
    return 8 + _header_bytes(tensors) + payload


def _tensors(
    model: PreTrainedModel, config: QuantizationConfig | None, bits: Mapping[str, int]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """``bits`` of the layers that are stored in 4 or 8; others stay in float."""
    quantized = {name: width for name, width in bits.items() if width < 16}
    replaced = {f"{name}.weight" for name in quantized}
    dtype: torch.dtype | None = None if config is None or config.dtype is None else getattr(torch, config.dtype)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in replaced:
            cast = dtype_of(model, name, dtype) if dtype is not None and tensor.is_floating_point() else tensor.dtype
            tensors[name] = (cast, tuple(tensor.shape))
        seen.add(id(tensor))
    tensors |= embedding_tensors(model, config, bool(quantized) or bool(stored_bits(model)))
    if config is not None and quantized:
        layers = projections(model)
        for name, width in quantized.items():
            at = config.at(4 if width == 4 else 8) if config.bits == "auto" else config
            tensors |= backend_for(width).stored(name, layers[name], at)
    return tensors


def _header_bytes(tensors: Tensors) -> int:
    """The safetensors header: JSON without spaces, padded so that the weights start at a multiple of 64 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES.get(dtype, "I64"), "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return (8 + len(text) + 63) // 64 * 64 - 8
