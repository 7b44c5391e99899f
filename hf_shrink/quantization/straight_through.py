"""Weights rounded as a backend stores them, while the float weights behind them learn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.onnx_model import FOLDER, INT8
from hf_shrink.quantization.backend import as_stored, backend_for, table_as_stored
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import recorded_dtype, tables
from hf_shrink.quantization.onnx_stored import stored_weights
from hf_shrink.quantization.roundings import Roundings
from hf_shrink.targets import Projection, oriented


@contextmanager
def weights_as_stored(model: nn.Module, roundings: Roundings, known: dict[str, Tensor] | None = None) -> Iterator[None]:
    """While it lasts, ``model`` computes with what its backend would store of its weights; the weights stay as they are.

    The gradient of the rounded weight is taken for that of the weight: the straight-through estimator (arXiv:1308.3432,
    section 4), as in training with simulated quantisation (arXiv:1712.05877, section 3). Activations are not rounded.

    Args:
        model: of ``roundings_of``; names of its weights do not change, so that whatever is saved meanwhile is plain.
        roundings: how each layer and each embedding will be stored.
        known: rounded weights by module, filled here: give the same again while no weight changes. None rounds at each pass.

    Raises:
        MismatchError: a module whose forward pass is somebody else's already, or neither a plain product nor a plain lookup.
    """
    forwards: list[tuple[Any, Any]] = []
    for name, config in roundings.items():
        owner = model.get_submodule(name)
        rounded = partial(_rounded, name, owner, config, known)
        for module in _readers(model, owner):
            if "forward" in vars(module):
                raise MismatchError(
                    f"quantization: the forward pass of {name} is replaced already; load the model on one device."
                )
            if (forward := _forward(module, rounded, _computes_in(owner, config))) is None:
                kind = type(module).__name__
                raise MismatchError(f"quantization: {name} is read by a kind of {kind} of its own, which cannot be rounded.")
            forwards.append((module, forward))
    try:
        for module, forward in forwards:
            vars(module)["forward"] = forward
        yield
    finally:
        for module, _ in forwards:
            vars(module).pop("forward", None)


def check_stored(model: PreTrainedModel, small: PreTrainedModel, roundings: Roundings) -> None:
    """An IntegrityError unless ``small`` holds, bit for bit, what ``model`` was trained with in ``weights_as_stored``.

    Args:
        model: in float32, after its training.
        small: ``model`` as bitsandbytes quantised it.
        roundings: that it was trained with.
    """
    held = {name: backend_for(width).restored(small.get_submodule(name)) for name, width in stored_bits(small).items()}
    kind = recorded_dtype(small)
    for parameter in tables(model):
        name, table = parameter.removesuffix(".weight"), small.get_parameter(parameter).data
        if name not in roundings and not torch.equal(model.get_parameter(parameter).to(table.dtype), table):
            raise IntegrityError(f"qat: {name} is stored as other numbers than it was trained with.")
        if name in roundings and kind == roundings[name].embeddings:
            held[name] = table
    _compare(model, held, roundings)


def check_exported(model: PreTrainedModel, folder: str | Path, roundings: Roundings) -> None:
    """``check_stored`` for ONNX Runtime: its codes times its scales, read from the graph that lies below ``folder``.

    Args:
        model: in float32, after its training.
        folder: that ``export_onnx`` wrote ``model`` to.
        roundings: that it was trained with.

    Raises:
        IntegrityError: the graph holds other numbers, or has others than ``roundings`` in 8 bits.
        ResourceError: onnx is missing.
    """
    _compare(model, stored_weights(Path(folder) / FOLDER / INT8), roundings)


def _compare(model: nn.Module, held: dict[str, Tensor], roundings: Roundings) -> None:
    if other := sorted(held.keys() ^ roundings.keys()):
        raise IntegrityError(f"qat: {other[0]} is not both trained and stored in fewer bits.")
    for name, config in roundings.items():
        module = model.get_submodule(name)
        if not torch.equal(_as_stored(module, _weight(module), config).to(held[name].device), held[name]):
            raise IntegrityError(f"qat: {name} is stored as other numbers than it was trained with.")


class _StraightThrough(torch.autograd.Function):
    """Rounds forward; the gradient passes as it comes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        return rounded(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _weight(module: Any) -> Tensor:
    """As it is stored: ``[out_features, in_features]``, or ``[rows, features]``."""
    weight: Tensor = module.weight if isinstance(module, nn.Embedding) else oriented(module)
    return weight


def _as_stored(module: nn.Module, weight: Tensor, config: QuantizationConfig) -> Tensor:
    return table_as_stored(weight, config) if isinstance(module, nn.Embedding) else as_stored(weight, config)


def _rounded(
    name: str, module: nn.Module, config: QuantizationConfig, known: dict[str, Tensor] | None, weight: Tensor
) -> Tensor:
    known = {} if known is None else known
    if name not in known:
        known[name] = _as_stored(module, weight, config).to(weight.dtype)
    return known[name].detach()  # another tensor each time, on the same numbers: each gets a gradient of its own


def _readers(model: nn.Module, owner: nn.Module) -> Iterator[nn.Module]:
    """Who computes with the weight of ``owner``: with an embedding's also the output layer that is tied to it."""
    if not isinstance(owner, nn.Embedding):
        yield owner
        return
    yield from (module for module in model.modules() if module._parameters.get("weight") is owner.weight)


def _forward(module: nn.Module, rounded: Callable[[Tensor], Tensor], dtype: torch.dtype | None) -> Any:
    """A forward pass in the place of the module's own; None where that is neither a plain product nor a plain lookup."""
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward and module.max_norm is None
        return partial(_rows, module, rounded) if plain else None
    return partial(_product, module, rounded, dtype) if isinstance(module, nn.Linear | Conv1D) else None


def _computes_in(owner: nn.Module, config: QuantizationConfig) -> torch.dtype | None:
    """What bitsandbytes casts input, weight and bias of a 4-bit layer to; None where they stay as they are."""
    casts = config.backend == "bitsandbytes" and config.bits == 4 and config.compute_dtype != "float32"
    return getattr(torch, config.compute_dtype) if casts and not isinstance(owner, nn.Embedding) else None


def _product(layer: Projection, rounded: Callable[[Tensor], Tensor], dtype: torch.dtype | None, x: Tensor) -> Tensor:
    """The layer's forward pass, in ``dtype`` where there is one; GPT-2's too, whose weight is turned round."""
    weight: Tensor = _StraightThrough.apply(_weight(layer), rounded)  # type: ignore[no-untyped-call]
    if dtype is None:
        return F.linear(x, weight, layer.bias)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)


def _rows(table: nn.Embedding, rounded: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """The lookup of an embedding."""
    weight: Tensor = _StraightThrough.apply(table.weight, rounded)  # type: ignore[no-untyped-call]
    return F.embedding(ids, weight, table.padding_idx, scale_grad_by_freq=table.scale_grad_by_freq)
