"""How large ``model.safetensors`` will be, from shapes alone."""

import json
import math

import torch
from transformers import PreTrainedModel

from hf_shrink.quantization.backend import Tensors, backend_for
from hf_shrink.quantization.cast import dtype_of
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import projections

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}


def predicted_bytes(model: PreTrainedModel, config: QuantizationConfig | None) -> int:
    """Bytes of the weights file that saving ``model`` writes after ``quantize(model, config)``.

    Args:
        model: on any device, also meta: only shapes are read. Tied weights are stored once.
        config: None for the model as it is.

    Returns:
        Header and weights; off by a few bytes a layer where a number's digits are stored as text.
    """
    tensors = _tensors(model, config)
    payload = sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())
    return 8 + _header_bytes(tensors) + payload


def _tensors(model: PreTrainedModel, config: QuantizationConfig | None) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    plan = None if config is None else keep_plan(model, config)
    replaced = {f"{name}.weight" for name in plan.quantized} if plan else set()
    dtype: torch.dtype | None = None if config is None or config.dtype is None else getattr(torch, config.dtype)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in replaced:
            cast = dtype_of(model, name, dtype) if dtype is not None and tensor.is_floating_point() else tensor.dtype
            tensors[name] = (cast, tuple(tensor.shape))
        seen.add(id(tensor))
    if config is not None and plan is not None:
        layers = projections(model)
        for name in plan.quantized:
            tensors |= backend_for(config.bits).stored(name, layers[name], config)
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
