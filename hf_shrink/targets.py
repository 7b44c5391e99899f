"""From ``target_modules`` / ``exclude_modules`` to layers. The only file that knows module types."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import RecipeError

Projection: TypeAlias = nn.Linear | Conv1D


def projections(model: nn.Module) -> dict[str, Projection]:
    """Every linear projection by name: ``nn.Linear`` and GPT-2's transposed ``Conv1D``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def oriented(module: Projection) -> Tensor:
    """The weight as ``[out_features, in_features]``, a view, whichever way the module stores it."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def features(module: Projection) -> tuple[int, int]:
    """``(in_features, out_features)``, read off the attributes, because four-bit weights are stored flat."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def matches(name: str, pattern: str) -> bool:
    """True where ``pattern`` is the whole name or its dotted end: ``output.dense`` matches ``layer.0.output.dense``."""
    return name == pattern or name.endswith(f".{pattern}")


def select(
    layers: Mapping[str, Projection], target_modules: Sequence[str], exclude_modules: Sequence[str], where: str
) -> dict[str, Projection]:
    """The layers that a pattern of ``target_modules`` names (all, where empty) and none of ``exclude_modules`` does.

    Args:
        layers: what there is to choose from, by full name.
        where: the config the patterns stand in, as in ``pruning.0``; errors add the field.

    Raises:
        RecipeError: a pattern names nothing, or nothing is left: a typo must not train for hours and prune nothing.
    """
    check_patterns(layers, target_modules, f"{where}.target_modules")
    check_patterns(layers, exclude_modules, f"{where}.exclude_modules")
    chosen = {
        name: layer
        for name, layer in layers.items()
        if (not target_modules or any(matches(name, pattern) for pattern in target_modules))
        and not any(matches(name, pattern) for pattern in exclude_modules)
    }
    if not chosen:
        raise RecipeError(f"{where}.exclude_modules: leaves 0 of {len(layers)} modules; remove a pattern.")
    return chosen


def check_patterns(names: Collection[str], patterns: Sequence[str], where: str) -> None:
    """Refuse, with a ``RecipeError``, a pattern that names none of ``names``; ``where`` is the field it stands in."""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise RecipeError(f"{where}: {pattern!r} matches 0 of {len(names)} modules; nearest: {_nearest(pattern, names)}.")


def _nearest(pattern: str, names: Collection[str]) -> str:
    depth = pattern.count(".") + 1
    ends = sorted({".".join(name.rsplit(".", depth)[-depth:]) for name in names})
    return ", ".join(difflib.get_close_matches(pattern, ends, n=5, cutoff=0.0))
