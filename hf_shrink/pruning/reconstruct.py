"""Refit what reads the units that stay, so that it puts out what it did with all of them: least squares on calibration data."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import NonFiniteError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.calibrate import evaluating
from hf_shrink.pruning.capture import Call, capture, counted, without_cache
from hf_shrink.pruning.pieces import Group
from hf_shrink.targets import Projection, oriented, projections

DAMPING = 1e-3
"""Ridge, as a fraction of the mean squared input: calibration data need not span every direction."""


@torch.no_grad()
def reconstruct(
    dense: PreTrainedModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    masks: Mapping[str, Tensor],
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    """Change the reading projections of ``groups`` in ``model``, in place, first layer first.

    Each is refitted to the output of the same projection in ``dense``, from the inputs that it gets in ``model``, where all
    before it are pruned and refitted: errors do not add up. ``W = Y'X (X'X + damping)^-1`` over the features that stay (and a
    constant one, where there is a bias); what reads a removed unit becomes zero (arXiv:2204.09656, section 4.3, solved).

    Args:
        dense: as before pruning.
        model: a copy of it.
        groups: of ``model``.
        masks: True = keep, by group name.
        batches: keyword arguments of the forward pass; padding does not count.

    Raises:
        NonFiniteError: the calibration gives numbers that are none.
    """
    keeps: dict[int, Tensor] = {}
    for group in groups:
        for piece in group.pieces:
            if piece.axis == "output":
                piece.parameter.mul_(piece.spread(masks[group.name].to(piece.parameter.device)))
            elif piece in group.weights:
                keeps[id(piece.module)] = piece.flat(masks[group.name]).nonzero().flatten().to(piece.parameter.device)
    family = family_of(model, "reconstruct")
    with ExitStack() as stack:
        for root in (dense, model):
            stack.enter_context(evaluating(root))
            stack.enter_context(without_cache(root))
        for (_, whole), (_, own) in zip(stacks_of(dense, family), stacks_of(model, family), strict=True):
            _stack(dense, model, _chosen(whole, own, keeps), keeps, batches)


def _chosen(whole: nn.ModuleList, own: nn.ModuleList, keeps: Mapping[int, Tensor]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Layers of both models up to the last one that holds something to refit; each once, where one is used twice."""
    pairs = {id(layer): (dense, layer) for dense, layer in zip(whole, own, strict=True)}
    holding = [any(id(module) in keeps for module in layer.modules()) for _, layer in pairs.values()]
    last = max((i for i, holds in enumerate(holding) if holds), default=-1)
    return {str(i): pair for i, pair in enumerate(list(pairs.values())[: last + 1])}


def _stack(
    dense: Any,
    model: Any,
    layers: Mapping[str, tuple[nn.Module, nn.Module]],
    keeps: Mapping[int, Tensor],
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    if not layers:
        return
    calls = [capture(root, {n: pair[i] for n, pair in layers.items()}, batches) for i, root in enumerate((dense, model))]
    for name, (whole, own) in layers.items():
        inside = projections(whole)
        for path, reader in projections(own).items():
            if id(reader) in keeps:
                xx, xy = _moments(name, (whole, inside[path]), (own, reader), keeps[id(reader)], calls)
                fit(reader, keeps[id(reader)], xx, xy, DAMPING)
        for layer, own_calls in zip((whole, own), calls, strict=True):
            for call in own_calls:
                call.hidden = call.run(name, layer)


def _moments(
    name: str,
    dense: tuple[nn.Module, Projection],
    own: tuple[nn.Module, Projection],
    keep: Tensor,
    calls: Sequence[Sequence[Call]],
) -> tuple[Tensor, Tensor]:
    """``X'X`` and ``X'Y`` in float64: kept inputs of the own projection (and a one, for its bias), outputs of the other."""
    reader, has_bias = own[1], own[1].bias is not None
    size, device = len(keep) + has_bias, oriented(reader).device
    xx = torch.zeros(size, size, dtype=torch.float64, device=device)
    xy = torch.zeros(size, oriented(reader).shape[0], dtype=torch.float64, device=device)
    for theirs, ours in zip(*calls, strict=True):
        y = _seen(name, dense, theirs, output=True).double()
        x = _seen(name, own, ours, output=False)[:, keep].double()
        if has_bias:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        xx += x.T @ x
        xy += x.T @ y
    if not bool(torch.isfinite(xx).all() and torch.isfinite(xy).all()):
        raise NonFiniteError(f"layer {name}: calibration gives activations that are not finite; look at data and weights.")
    return xx, xy


def _seen(name: str, where: tuple[nn.Module, Projection], call: Call, *, output: bool) -> Tensor:
    """What the projection reads or puts out while its layer runs, ``[positions, features]`` without padding."""
    (layer, module), found = where, []
    hook = module.register_forward_hook(lambda _, args, result: found.append(result if output else args[0]))
    try:
        call.run(name, layer)
    finally:
        hook.remove()
    return counted(name, found[0], call.mask)


def fit(reader: Projection, keep: Tensor, xx: Tensor, xy: Tensor, damping: float) -> None:
    """Give ``reader``, in place, the weights that solve ``X'X W = X'Y``, with a ridge towards those it has.

    Args:
        reader: what is fitted.
        keep: the inputs that it goes on reading, int64; for all others its weights become zero.
        xx: ``X'X`` of these inputs, float64, and behind them of a constant one where there is a bias; is changed.
        xy: ``X'Y``; is changed.
        damping: the ridge, as a fraction of the mean squared input.
    """
    size = float(xx.diagonal()[: len(keep)].mean())
    ridge = damping * size if size > 0 else 1.0  # nothing is read: the weights stay
    xx.diagonal()[: len(keep)] += ridge  # the constant feature is not held back
    weight = oriented(reader)
    xy[: len(keep)] += ridge * weight[:, keep].T.double()  # towards the weights as they are, where data says nothing else
    solution = torch.linalg.solve(xx, xy)
    fitted = torch.zeros_like(weight)
    fitted[:, keep] = solution[: len(keep)].T.to(weight.dtype)
    weight.copy_(fitted)
    if reader.bias is not None:
        reader.bias.copy_(solution[-1].to(reader.bias.dtype))
