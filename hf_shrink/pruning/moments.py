"""Let an optimizer go on with a model that has been cut: its moments lose what the weights lost."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hf_shrink.errors import MismatchError
from hf_shrink.families import FAMILIES
from hf_shrink.pruning.units import NOUNS, units_of


def carried(optimizer: Optimizer, model: Any, small: Any, masks: Mapping[str, Tensor]) -> Optimizer:
    """An optimizer of the same kind over the parameters of ``small``, with the learning rates and moments of ``optimizer``.

    Args:
        optimizer: over the parameters of ``model``; stays as it is.
        model: what was trained.
        small: ``shrink(model, masks)``.
        masks: those it was cut by.

    Raises:
        MismatchError: the optimizer keeps something else than one number a weight, as Adafactor does; start a new one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    new = dict(small.named_parameters())
    cuts = _cuts(model, masks)
    states = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        states[name] = {k: _cut(value, parameter, cuts.get(id(parameter), []), f"{name}: {k}") for k, value in state.items()}
    groups = [{**group, "params": [new[names[id(p)]] for p in group["params"]]} for group in optimizer.param_groups]
    again: Optimizer = type(optimizer)(groups, **_required(optimizer))
    for name, state in states.items():
        again.state[new[name]] = state
    return again


def _cuts(model: Any, masks: Mapping[str, Tensor]) -> dict[int, list[tuple[int, Tensor]]]:
    """For each parameter that ``masks`` shorten, along which dimension and what stays."""
    found: dict[int, list[tuple[int, Tensor]]] = {}
    family = FAMILIES.get(model.config.model_type)
    kinds = {name.rpartition(":")[2] for name in masks if ":" in name} & NOUNS.keys()
    for kind in kinds if family is not None else ():
        assert family is not None
        for units in units_of(model, family, kind):  # type: ignore[arg-type]
            if units.name in masks:
                for piece in units.pieces:
                    keep = piece.flat(masks[units.name]).nonzero().flatten()
                    found.setdefault(id(piece.parameter), []).append((piece.dim, keep))
    return found


def _cut(value: Any, parameter: Tensor, cuts: list[tuple[int, Tensor]], where: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0 or (not cuts and value.shape == parameter.shape):
        return value.clone()
    if value.shape != parameter.shape:
        raise MismatchError(f"{where} has shape {list(value.shape)}, not one number a weight; start a new optimizer.")
    for dim, keep in cuts:
        value = value.index_select(dim, keep.to(value.device))
    return value


def _required(optimizer: Optimizer) -> dict[str, Any]:
    """Arguments that its class has no default for; the groups override them."""
    return {"lr": optimizer.defaults["lr"]} if isinstance(optimizer.defaults.get("lr"), float) else {}
