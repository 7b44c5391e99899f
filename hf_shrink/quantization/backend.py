"""The libraries that store weights in fewer bits, in one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.quantization import bitsandbytes, embeddings, onnx_rounding
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.targets import Projection

Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""What lies in a file: tensor name -> dtype and shape."""


@dataclass(frozen=True)
class Backend:
    """One library.

    Attributes:
        bits: the values of ``QuantizationConfig.bits`` it serves.
        unfit: why a layer is kept as it is, or None where the kernels take it.
        store: ``(model, config, quantized=names, kept=names)`` -> a quantised copy that plain transformers can save and load.
        stored: ``(name, layer, config)`` -> the tensors a quantised layer's weight becomes in the file.
        restored: a quantised layer -> its weight as floats, ``[out_features, in_features]``.
        rounded: ``(weight [out_features, in_features], config)`` -> what ``restored`` would give of it.
    """

    bits: tuple[int, ...]
    unfit: Callable[[Projection, QuantizationConfig], str | None]
    store: Callable[..., PreTrainedModel]
    stored: Callable[[str, Projection, QuantizationConfig], Tensors]
    restored: Callable[[nn.Module], Tensor]
    rounded: Callable[[Tensor, QuantizationConfig], Tensor]


BACKENDS: Mapping[str, Backend] = {
    "bitsandbytes": Backend(
        (4, 8),
        bitsandbytes.unfit,
        bitsandbytes.store,
        bitsandbytes.stored,
        bitsandbytes.restored,
        bitsandbytes.rounded,
    ),
}


def backend_for(bits: int) -> Backend:
    """The backend that stores weights in ``bits`` bits; 16 needs none."""
    return next(backend for backend in BACKENDS.values() if bits in backend.bits)


def as_stored(weight: Tensor, config: QuantizationConfig) -> Tensor:
    """What a layer multiplies by once it is stored.

    Args:
        weight: in float, ``[out_features, in_features]``.
        config: with 4 or 8 bits. Weights in 4 bits are made of the precision that the rest is stored in, those in 8 bits not.
    """
    if config.backend == "onnx":
        return onnx_rounding.rounded_product(weight)
    cast = config.dtype is not None and config.bits == 4
    value = weight.to(getattr(torch, str(config.dtype))) if cast else weight
    return backend_for(8 if config.bits == 8 else 4).rounded(value, config)


def table_as_stored(table: Tensor, config: QuantizationConfig) -> Tensor:
    """What an embedding looks up once it is stored.

    Args:
        table: in float, ``[rows, features]``.
        config: of onnx, or with ``embeddings`` other than keep.
    """
    if config.backend == "onnx":
        return onnx_rounding.rounded_table(table)
    return embeddings.rounded_table(table, config.embeddings)
