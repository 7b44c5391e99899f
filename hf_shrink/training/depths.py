"""How deep in a model each parameter stands, and what follows from it: learning rates, and who learns at which step."""

from typing import Any

from torch.optim import Optimizer

from hf_shrink.errors import RecipeError
from hf_shrink.families import family_of, stacks_of


def depths_of(model: Any, where: str) -> dict[str, int]:
    """The depth of each parameter by its name: 0 before the layers, 1 to L in them, L + 1 behind them.

    A weight used at both ends, as tied embeddings are, counts where it is used first.

    Args:
        model: a transformers model with one stack of layers, with or without adapters.
        where: the key that asks, for errors.

    Raises:
        RecipeError: an unknown family, or two stacks.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    stacks = stacks_of(inner, family_of(inner, where))
    if len(stacks) > 1:
        raise RecipeError(f"{where}: counts the layers of one stack, but {type(inner).__name__} has two; remove it.")
    layers = stacks[0][1]
    found = {id(p): number for number, layer in enumerate(layers, 1) for p in layer.parameters()}
    top, inside = len(layers) + 1, False
    for parameter in inner.base_model.parameters():
        inside = inside or id(parameter) in found
        found.setdefault(id(parameter), top if inside else 0)
    return {name: found.get(id(parameter), top) for name, parameter in model.named_parameters()}


def unfrozen(step: int, *, every: int, layers: int) -> range:
    """The depths that learn after ``step`` optimizer steps: one more every ``every`` steps, from L + 1 down to 0.

    Gradual unfreezing of arXiv:1801.06146, section 3.3, with steps for its epochs.
    """
    return range(max(layers + 1 - step // every, 0), layers + 2)


def split_by_depth(optimizer: Optimizer, depths: dict[int, int], decay: float, where: str) -> None:
    """Give each depth its learning rate: ``decay ** (L + 1 - depth)`` times that of its group.

    Parameters of unknown depth keep theirs. The groups with the whole rate come first, whose rate is the one that is logged.

    Args:
        optimizer: without state yet; its groups are changed in place.
        depths: by the ``id`` of a parameter.
        decay: above 0, below 1.
        where: the key that asks, for errors.

    Raises:
        RecipeError: the optimizer does not hold the parameters themselves.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not depths.keys() <= held:
        raise RecipeError(f"{where}: {type(optimizer).__name__} has no learning rate for each weight; choose another `optim`.")
    top, split = max(depths.values()), []
    for group in optimizer.param_groups:
        by_depth: dict[int, list[Any]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depths.get(id(parameter), top), []).append(parameter)
        split += [(depth, {**group, "params": each}) for depth, each in by_depth.items()]
    split.sort(key=lambda pair: -pair[0])
    optimizer.param_groups[:] = [{**group, "lr": group["lr"] * decay ** (top - depth)} for depth, group in split]
