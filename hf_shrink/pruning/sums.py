"""Running sums from which the statistics of pruning are read: what is added, and how a mean comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.targets import Projection, oriented

Stats: TypeAlias = Mapping[str, Tensor]
"""What a criterion asked for, by name; empty where it asked for nothing. ``statistics.py`` lists the names."""

FROM_GRADIENTS = frozenset({"gradient", "squared_gradient", "taylor", "movement"})
FROM_INPUTS = frozenset({"input_norm", "input_mean", "input_variance"})
FROM_UNIT_INPUTS = frozenset({"unit_norm", "unit_variance"})
FROM_PRODUCTS = frozenset({"unit_taylor", "unit_fisher"})
FROM_SAMPLES = frozenset({"unit_samples", "labels"})
GIVEN = frozenset({"key"})
"""Statistics that need no data."""
OF_UNITS = FROM_UNIT_INPUTS | FROM_PRODUCTS | FROM_SAMPLES
KNOWN = FROM_GRADIENTS | FROM_INPUTS | OF_UNITS | GIVEN

SAMPLES = 1024
"""How many samples ``unit_samples`` and ``labels`` keep: the first ones."""

_ROWS_AT_ONCE = 2048  # bounds the float64 copy of an activation


@dataclass(frozen=True)
class Watched:
    """One projection whose statistics are kept.

    Attributes:
        name: of the statistics, as in ``Recorder.stats(name)``; unique.
        module: the projection; its weight and gradient are read from it each time, since training may replace them.
        needs: names of statistics.
        units: how the input features are laid out, for statistics of units: ``(blocks, units, inner)``, features of one unit
            being ``inner`` neighbours in each of ``blocks`` blocks.
        seed: of the statistic ``key``.
    """

    name: str
    module: Projection
    needs: tuple[str, ...]
    units: tuple[int, int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(self.wanted - KNOWN):
            raise RecipeError(f"{self.name}: unknown statistic {', '.join(unknown)}. Known: {', '.join(sorted(KNOWN))}.")
        if of_units := sorted(self.wanted & OF_UNITS):
            features = oriented(self.module).shape[1]
            if self.units is None:
                raise RecipeError(f"{self.name}: {', '.join(of_units)} belong to units; say how inputs form units.")
            if self.units[0] * self.units[1] * self.units[2] != features:
                raise MismatchError(f"{self.name}: {' x '.join(map(str, self.units))} units of {features} input features.")

    @property
    def wanted(self) -> frozenset[str]:
        """The names in ``needs``, as a set."""
        return frozenset(self.needs)

    def combine(self, features: Tensor) -> Tensor:
        """The sum over the features of each unit: ``[..., in]`` to ``[..., units]``."""
        assert self.units is not None
        return features.reshape(*features.shape[:-1], *self.units).sum(dim=(-3, -1))


def empty(watched: Watched) -> dict[str, Tensor]:
    """The sums that the needs of ``watched`` are read from, all zero, where its weight is."""
    device, needs = watched.module.weight.device, watched.wanted
    out_features, in_features = oriented(watched.module).shape
    found: dict[str, Tensor] = {}
    if counted := needs & FROM_GRADIENTS:
        found["gradient_count"] = torch.zeros((), dtype=torch.int64)
        found |= {f"{name}_sum": torch.zeros(out_features, in_features) for name in counted}
    if needs & (FROM_INPUTS | FROM_UNIT_INPUTS):
        found["token_count"] = torch.zeros((), dtype=torch.int64)
        found |= {name: torch.zeros(in_features, dtype=torch.float64) for name in ("input_sum", "input_square_sum")}
    if watched.units is not None and needs & FROM_PRODUCTS:
        found["product_count"] = torch.zeros((), dtype=torch.int64)
        found |= {f"{name}_sum": torch.zeros(watched.units[1], dtype=torch.float64) for name in sorted(FROM_PRODUCTS)}
    if watched.units is not None and needs & FROM_SAMPLES:
        found["sample_count"] = torch.zeros((), dtype=torch.int64)
        found["unit_samples"] = torch.zeros(SAMPLES, watched.units[1])
        found["labels"] = torch.zeros(SAMPLES, dtype=torch.int64)
    return {name: value.to(device) for name, value in sorted(found.items())}


def add_gradient(sums: dict[str, Tensor], weight: Tensor, gradient: Tensor) -> None:
    """One gradient of the weight, both ``[out, in]``."""
    weight, gradient = weight.detach().float(), gradient.float()
    sums["gradient_count"] += 1
    if "gradient_sum" in sums:
        sums["gradient_sum"] += gradient
    if "squared_gradient_sum" in sums:
        sums["squared_gradient_sum"] += gradient.square()
    if "taylor_sum" in sums:
        sums["taylor_sum"] += (weight * gradient).square()
    if "movement_sum" in sums:
        sums["movement_sum"] -= weight * gradient


def add_inputs(sums: dict[str, Tensor], rows: Tensor) -> None:
    """Input features ``[tokens, in]`` of tokens that count."""
    sums["token_count"] += len(rows)
    for part in torch.split(rows, _ROWS_AT_ONCE):
        wide = part.double()
        sums["input_sum"] += wide.sum(dim=0)
        sums["input_square_sum"] += wide.square().sum(dim=0)


def add_products(sums: dict[str, Tensor], products: Tensor) -> None:
    """What a gate on each unit would receive as gradient, ``[samples, units]``."""
    sums["product_count"] += len(products)
    sums["unit_taylor_sum"] += products.double().abs().sum(dim=0)
    sums["unit_fisher_sum"] += products.double().square().sum(dim=0)


def add_samples(sums: dict[str, Tensor], samples: Tensor, labels: Tensor, *, limit: int) -> None:
    """Activations ``[samples, units]`` and their labels, until there are ``limit``."""
    start = int(sums["sample_count"])
    count = max(min(len(samples), limit - start), 0)
    sums["unit_samples"][start : start + count] = samples[:count].float()
    sums["labels"][start : start + count] = labels[:count]
    sums["sample_count"] += count


def read(watched: Watched, sums: Stats) -> dict[str, Tensor]:
    """The statistics that ``watched`` needs, from sums that are not empty; ``unit_samples`` holds ``sample_count`` rows."""
    found: dict[str, Tensor] = {}
    for name in watched.wanted & FROM_GRADIENTS:
        total = sums[f"{name}_sum"]
        found[name] = total.clone() if name == "movement" else total / sums["gradient_count"]
    if watched.wanted & (FROM_INPUTS | FROM_UNIT_INPUTS):
        square_sum, mean = sums["input_square_sum"], sums["input_sum"] / sums["token_count"]
        variance = (square_sum / sums["token_count"] - mean.square()).clamp(min=0)
        found |= {"input_norm": square_sum.sqrt(), "input_mean": mean, "input_variance": variance}
        if watched.units is not None:
            found |= {"unit_norm": watched.combine(square_sum).sqrt(), "unit_variance": watched.combine(variance)}
    for name in watched.wanted & FROM_PRODUCTS:
        found[name] = sums[f"{name}_sum"] / sums["product_count"]
    for name in watched.wanted & FROM_SAMPLES:
        found[name] = sums[name]
    return {name: found[name] if name == "labels" else found[name].float() for name in sorted(watched.wanted - GIVEN)}
