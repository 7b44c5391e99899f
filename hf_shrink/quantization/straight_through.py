"""Weights rounded as a backend stores them, while the float weights behind them learn."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.quantization.backend import as_stored, backend_for
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import Projection, oriented, projections

Roundings = Mapping[str, QuantizationConfig]
"""Layer -> how it will be stored, in 4 or 8 bits."""


def roundings_of(model: PreTrainedModel, quantization: QuantizationConfig | Roundings) -> dict[str, QuantizationConfig]:
    """How each layer of ``model`` will be stored: those that the safety plan quantises, or those that are named.

    Args:
        model: in float32, without adapters.
        quantization: for all that ``quantize`` would quantise, or by layer.

    Raises:
        RecipeError: no rounding of bitsandbytes, nothing to quantise, or as ``refuse_unseen``.
        MismatchError: a layer that the model does not have, or weights that are no float32: steps smaller than their
            precision would be lost.
    """
    one = isinstance(quantization, QuantizationConfig)
    for config in [quantization] if isinstance(quantization, QuantizationConfig) else quantization.values():
        if config.backend != "bitsandbytes" or config.bits not in (4, 8):
            way = "; for auto pass {layer: config}, with the bits that `quantize` gave" if config.bits == "auto" else ""
            raise RecipeError(
                f"quantization: weights are trained as bitsandbytes stores them in 8 or 4 bits, got backend {config.backend}, "
                f"bits {config.bits}.\nUse bits: 8 or 4{way}."
            )
        refuse_unseen(config)
    if isinstance(quantization, QuantizationConfig):
        found = dict.fromkeys(keep_plan(model, quantization).quantized, quantization)
    else:
        found = dict(quantization)
    layers = projections(model)
    if unknown := [name for name in found if name not in layers]:
        raise MismatchError(f"quantization: {type(model).__name__} has no projection {unknown[0]!r}; name layers in full.")
    for name, config in found.items():
        why = None if one else backend_for(int(config.bits)).unfit(layers[name], config)
        if why is not None:
            raise MismatchError(f"quantization: {name}: {why}; leave it out.")
        if layers[name].weight.dtype != torch.float32:
            raise MismatchError(
                f"quantization: {name} is in {str(layers[name].weight.dtype).removeprefix('torch.')}, and steps smaller than "
                "its precision would be lost.\nLoad the model in float32; `bf16: true` computes in 16 bits."
            )
    return found


def refuse_unseen(config: QuantizationConfig) -> None:
    """A RecipeError where ``config`` rounds more than the weights of layers: training would not see it, nor who judges it."""
    for name, usual in (("embeddings", "keep"), ("dtype", None), ("compute_dtype", "float32")):
        if (value := getattr(config, name)) not in (usual, "float32"):
            raise RecipeError(
                f"quantization.{name}: {value} rounds more than weights of layers, and training sees those alone: what is "
                "judged would not be what is stored.\nRemove it, or use recovery.method: adapters."
            )


@contextmanager
def weights_as_stored(model: nn.Module, roundings: Roundings, known: dict[str, Tensor] | None = None) -> Iterator[None]:
    """While it lasts, layers multiply by what their backend would store of their weights; the weights stay as they are.

    The gradient of the rounded weight is taken for that of the weight: the straight-through estimator (arXiv:1308.3432,
    section 4), as in training with simulated quantisation (arXiv:1712.05877, section 3). Activations are not rounded.

    Args:
        model: of ``roundings_of``; names of its weights do not change, so that whatever is saved meanwhile is plain.
        roundings: how each layer will be stored.
        known: rounded weights by layer, filled here: give the same again while no weight changes. None rounds at each pass.

    Raises:
        MismatchError: a layer whose forward pass is somebody else's already.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in roundings}
    if taken := [name for name, layer in layers.items() if "forward" in vars(layer)]:
        raise MismatchError(f"quantization: the forward pass of {taken[0]} is replaced already; load the model on one device.")
    try:
        for name, layer in layers.items():
            vars(layer)["forward"] = partial(_product, layer, partial(_rounded, name, roundings[name], known))
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def check_stored(model: PreTrainedModel, small: PreTrainedModel, roundings: Roundings) -> None:
    """An IntegrityError unless ``small`` holds, bit for bit, what ``model`` was trained with in ``weights_as_stored``.

    Args:
        model: in float32, after its training.
        small: ``model`` as it was quantised.
        roundings: that it was trained with.
    """
    if other := sorted(stored_bits(small).keys() ^ roundings.keys()):
        raise IntegrityError(f"qat: {other[0]} is not both trained and stored in fewer bits.")
    for name, config in roundings.items():
        trained = as_stored(oriented(model.get_submodule(name)), config)  # type: ignore[arg-type]
        if not torch.equal(trained, backend_for(int(config.bits)).restored(small.get_submodule(name))):
            raise IntegrityError(f"qat: {name} is stored as other numbers than it was trained with.")


class _StraightThrough(torch.autograd.Function):
    """Rounds forward; the gradient passes as it comes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        return rounded(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _rounded(name: str, config: QuantizationConfig, known: dict[str, Tensor] | None, weight: Tensor) -> Tensor:
    known = {} if known is None else known
    if name not in known:
        known[name] = as_stored(weight, config).to(weight.dtype)
    return known[name].detach()  # another tensor each time, on the same numbers: each gets a gradient of its own


def _product(layer: Projection, rounded: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The layer's forward pass; GPT-2's too, whose weight is turned round."""
    weight: Tensor = _StraightThrough.apply(oriented(layer), rounded)  # type: ignore[no-untyped-call]
    return F.linear(x, weight, layer.bias)
