"""``bits: auto``: measure what each layer loses in 4 and in 8 bits, and give bits where they are worth most."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.quantization.backend import as_stored, backend_for
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.embeddings import check_tables, round_embeddings
from hf_shrink.quantization.knapsack import Option, cheapest, path, spend
from hf_shrink.quantization.mixed_table import LayerBits, MixedPlan, Trade
from hf_shrink.quantization.plan import KEPT, Plan, keep_plan
from hf_shrink.quantization.size import bytes_with
from hf_shrink.targets import Projection, oriented, projections

WIDTHS: tuple[Literal[4, 8], ...] = (4, 8)


@dataclass(frozen=True)
class Mixed:
    """A quantised copy, and how it was decided."""

    model: PreTrainedModel
    plan: MixedPlan


def quantize_mixed(model: PreTrainedModel, config: QuantizationConfig, calibration: Sequence[Mapping[str, Tensor]]) -> Mixed:
    """A copy of ``model`` with 4, 8 or its own float bits a layer, within ``config.budget``.

    What a layer loses is the KL of the model's answers where only this layer is rounded, weights alone: one pass over the
    calibration rows for each layer and width, one layer changed at a time and put back as it was. The sum over layers stands
    for what all lose together; that is then measured on the stored model, activations rounded as its layers round them. For
    ``max_kl`` the cheapest choice on the path of the knapsack that keeps to it, by bisection, each tried as it is stored.

    Args:
        model: in float; stays as it is.
        config: with ``bits: auto``.
        calibration: batches (keyword arguments of the forward pass).

    Raises:
        RecipeError: a budget that nothing meets, or a model whose answers are no distributions.
        NonFiniteError: answers that are NaN or infinite.
    """
    assert config.budget is not None
    kept, layers = keep_plan(model, config), projections(model)
    check_tables(model, config)
    modes = [(module, module.training) for module in model.modules()]
    try:
        reference = Divergence(model, calibration)
        options = {name: _options(model, name, layers[name], config, reference) for name in kept.quantized}
    finally:
        for module, training in modes:
            module.training = training
    if config.budget.max_kl is not None:
        chosen, small = _meeting(model, config, kept, options, reference, config.budget.max_kl)
    else:
        chosen = spend(options, _room(model, config, options, layers))
        small = store_mixed(model, config, kept, {name: option.bits for name, option in chosen.items()})
    fewest = cheapest(options)
    same = chosen == fewest
    lowest = small if same else store_mixed(model, config, kept, {name: option.bits for name, option in fewest.items()})
    trades = _trades(model, config, options)
    measured = {
        "fewest bits": Trade(_file_bytes(model, config, fewest), _sum(fewest), reference.of(lowest)),
        "chosen": Trade(_file_bytes(model, config, chosen), _sum(chosen), reference.of(small)),
    }
    bits = tuple(
        LayerBits(name, option.bits, option.bytes, _loss(options[name], 4), _loss(options[name], 8))
        for name, option in chosen.items()
    )
    plan = MixedPlan(bits, dict(kept.kept), trades, measured, reference.positions)
    small.config.layer_bits = plan.record()
    setattr(small.config, KEPT, plan.in_float)
    return Mixed(small, plan)


def store_mixed(model: PreTrainedModel, config: QuantizationConfig, plan: Plan, bits: Mapping[str, int]) -> PreTrainedModel:
    """A quantised copy of ``model`` whose layers have ``bits``: 4 or 8; any other number leaves them in float.

    Args:
        model: stays as it is.
        config: with ``bits: auto``.
        plan: what can be quantised at all.
        bits: layer -> bits, for each of ``plan.quantized``.
    """
    four, eight = ([name for name in plan.quantized if bits[name] == width] for width in WIDTHS)
    floats = [name for name in (*plan.kept, *plan.quantized) if bits.get(name) not in WIDTHS]
    result = model
    if not eight and not four:
        result = copy.deepcopy(model)
        result.eval()  # type: ignore[no-untyped-call]
        if config.dtype is not None:
            cast_in_place(result, getattr(torch, config.dtype))
    if eight:
        result = backend_for(8).store(model, config.at(8), quantized=eight, kept=(*floats, *four))
    if four:  # after the 8 bits: what is cast to another dtype is cast already, and their scales must not be
        words = config.at(4) if not eight else config.at(4).model_copy(update={"dtype": None})
        result = backend_for(4).store(result, words, quantized=four, kept=(*floats, *eight))
    round_embeddings(result, config)
    return result


def least_and_most(model: PreTrainedModel, config: QuantizationConfig) -> tuple[int, int]:
    """Bytes of the file with every layer in its fewest bits, and in the most that ``bits: auto`` gives; from shapes alone."""
    layers = projections(model)
    sizes = {name: _sizes(name, layers[name], config) for name in keep_plan(model, config).quantized}
    ends = ({name: pick(each, key=lambda bits: each[bits]) for name, each in sizes.items()} for pick in (min, max))
    least, most = (bytes_with(model, config, end) for end in ends)
    return least, most


def expected_bytes(model: PreTrainedModel, config: QuantizationConfig) -> int | None:
    """Bytes of the file that the budget leads to; None for ``max_kl``, which no shape can tell."""
    assert config.budget is not None
    check_tables(model, config)
    if config.budget.max_kl is not None:
        return None
    layers = projections(model)
    options = {
        name: [Option(bits, size, 1 / size) for bits, size in _sizes(name, layers[name], config).items()]
        for name in keep_plan(model, config).quantized
    }
    room = _room(model, config, options, layers)
    least, most = least_and_most(model, config)
    floor = sum(option.bytes for option in cheapest(options).values())
    return min(most, least - floor + room)


def _sizes(name: str, layer: Projection, config: QuantizationConfig) -> dict[int, int]:
    """Bytes of the layer's weight at each number of bits it can have."""
    dtype = layer.weight.dtype if config.dtype is None else getattr(torch, config.dtype)
    found = {16: layer.weight.numel() * dtype.itemsize}
    for width in WIDTHS:
        at, backend = config.at(width), backend_for(width)
        if backend.unfit(layer, at) is None:
            tensors = backend.stored(name, layer, at).values()
            found[width] = sum(kind.itemsize * math.prod(shape) for kind, shape in tensors)
    return found


def _options(
    model: PreTrainedModel, name: str, layer: Projection, config: QuantizationConfig, reference: Divergence
) -> list[Option]:
    found = []
    for bits, size in _sizes(name, layer, config).items():
        loss = 0.0 if bits == 16 else _alone(model, layer, config.at(4 if bits == 4 else 8), reference)
        found.append(Option(bits, size, loss))
    return found


@torch.no_grad()
def _alone(model: PreTrainedModel, layer: Projection, config: QuantizationConfig, reference: Divergence) -> float:
    """The loss where only this layer is rounded; afterwards it has the very tensor that it had."""
    whole = layer.weight.data
    value = as_stored(oriented(layer), config)
    try:
        layer.weight.data = torch.empty_like(whole)
        oriented(layer).copy_(value)
        return reference.of(model)
    finally:
        layer.weight.data = whole


def _room(
    model: PreTrainedModel,
    config: QuantizationConfig,
    options: Mapping[str, Sequence[Option]],
    layers: Mapping[str, Projection],
) -> int:
    """Bytes that the weights of all layers that can be quantised may take."""
    budget, fewest = config.budget, cheapest(options)
    assert budget is not None
    floor = sum(option.bytes for option in fewest.values())
    if budget.bits_per_weight is not None:
        weights = sum(layers[name].weight.numel() for name in options)
        room, least = int(budget.bits_per_weight * weights / 8), f"{8 * floor / weights:.2f} bits_per_weight"
    else:
        assert budget.bytes is not None
        file = bytes_with(model, config, {name: option.bits for name, option in fewest.items()})
        room, least = budget.bytes - (file - floor), f"{file:,} bytes"
    if room < floor:
        raise RecipeError(f"quantization.budget: the fewest bits that the layers can have take {least}; give at least that.")
    return room


def _meeting(
    model: PreTrainedModel,
    config: QuantizationConfig,
    plan: Plan,
    options: Mapping[str, Sequence[Option]],
    reference: Divergence,
    most: float,
) -> tuple[dict[str, Option], PreTrainedModel]:
    """The first choice on the knapsack's path, found by bisection, whose stored model loses at most ``most``."""
    choices = list(path(options))
    low, high, best = 0, len(choices) - 1, None
    while low <= high:
        middle = (low + high) // 2
        bits = {name: option.bits for name, option in choices[middle].items()}
        small = store_mixed(model, config, plan, bits)
        if {*bits.values()} & {*WIDTHS} and reference.of(small) <= most:
            best, high = (choices[middle], small), middle - 1
        else:
            low = middle + 1
    if best is None:
        raise RecipeError(f"quantization.budget: no choice of bits keeps KL at {most:g} nats or below; give more, or drop it.")
    return best


def _trades(model: PreTrainedModel, config: QuantizationConfig, options: Mapping[str, Sequence[Option]]) -> tuple[Trade, ...]:
    return tuple(Trade(_file_bytes(model, config, choice), _sum(choice)) for choice in path(options))


def _file_bytes(model: PreTrainedModel, config: QuantizationConfig, choice: Mapping[str, Option]) -> int:
    return bytes_with(model, config, {name: option.bits for name, option in choice.items()})


def _sum(choice: Mapping[str, Option]) -> float:
    return sum(option.kl for option in choice.values())


def _loss(options: Sequence[Option], bits: int) -> float | None:
    return next((option.kl for option in options if option.bits == bits), None)
