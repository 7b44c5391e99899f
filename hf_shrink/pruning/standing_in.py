"""Layers that stay do what those behind them did, as far as one projection can: least squares on calibration data."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.anatomy import Stack
from hf_shrink.errors import NonFiniteError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.calibrate import evaluating
from hf_shrink.pruning.capture import Call, capture, counted, without_cache
from hf_shrink.pruning.reconstruct import fit
from hf_shrink.targets import Projection, features

DAMPING = 0.1
"""Ridge, as a fraction of the mean squared input: what is asked of the projection is more than it was trained for."""


@torch.no_grad()
def stand_in(
    dense: PreTrainedModel,
    small: PreTrainedModel,
    kept: Sequence[Sequence[int]],
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    """Let each layer of ``small``, in place and first layer first, stand for those up to the next that stayed.

    The projection that reads its neurons is fitted so that the hidden states behind the layer are those behind the last layer
    that it stands for in ``dense``, from what the layers before it, fitted already, give. Where a layer ends with a
    normalisation, it is fitted to what goes into that, and the normalisation is the other layer's. The idea of replacing
    layers by a linear map in the projection before them is that of arXiv:2505.02819, section 2; here the whole projection is
    solved for, with a ridge towards its own weights.

    Args:
        dense: with all layers.
        small: a copy without some of them; one whose layer stands for itself alone, after others that do, stays as it is.
        kept: for each stack the numbers of the layers that stayed, counted from 0.
        batches: keyword arguments of the forward pass; padding does not count.

    Raises:
        NonFiniteError: the calibration gives numbers that are none.
    """
    family = family_of(small, "reconstruct")
    with ExitStack() as stack:
        for root in (dense, small):
            stack.enter_context(evaluating(root))
            stack.enter_context(without_cache(root))
        pairs = zip(stacks_of(dense, family), stacks_of(small, family), kept, strict=True)
        for (description, whole), (_, own), stayed in pairs:
            _stack(description, (dense, whole), (small, own), stayed, batches)


def last_of_each(kept: Sequence[int], total: int) -> tuple[int, ...]:
    """The last layer that each one that stayed stands for: ``(0, 2, 4)`` of 6 stand for the layers up to ``(1, 3, 5)``."""
    return (*(after - 1 for after in kept[1:]), total - 1)


def _stack(
    description: Stack,
    dense: tuple[Any, nn.ModuleList],
    small: tuple[Any, nn.ModuleList],
    kept: Sequence[int],
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    ends = last_of_each(kept, len(dense[1]))
    named = [{str(i): layer for i, layer in enumerate(layers)} for _, layers in (dense, small)]
    theirs, ours = (capture(root, layers, batches) for (root, _), layers in zip((dense, small), named, strict=True))
    reached, same = -1, True
    for place, end in enumerate(ends):
        for before in range(reached + 1, end):
            for call in theirs:
                call.advance(str(before), named[0][str(before)])
        name, last, own = str(place), named[0][str(end)], named[1][str(place)]
        same = same and kept[place] == end == place
        if not same:
            norm = _closing_norm(str(end), last, theirs[0])
            if norm:
                own.get_submodule(norm).load_state_dict(last.get_submodule(norm).state_dict())
            reader: Any = own.get_submodule(description.ffn_out)
            xx, xy = _moments((str(end), last, theirs), (name, own, ours), reader, norm)
            fit(reader, torch.arange(features(reader)[0], device=xx.device), xx, xy, DAMPING)
        for layer, label, calls in ((last, str(end), theirs), (own, name, ours)):
            for call in calls:
                call.advance(label, layer)
        reached = end


def _moments(
    dense: tuple[str, nn.Module, Sequence[Call]],
    own: tuple[str, nn.Module, Sequence[Call]],
    reader: Projection,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """``X'X`` and ``X'Y`` in float64: what ``reader`` reads (and a one, for its bias), and what it should put out."""
    has_bias, (inputs, outputs) = reader.bias is not None, features(reader)
    xx = torch.zeros(inputs + has_bias, inputs + has_bias, dtype=torch.float64, device=reader.weight.device)
    xy = torch.zeros(inputs + has_bias, outputs, dtype=torch.float64, device=reader.weight.device)
    for theirs, ours in zip(dense[2], own[2], strict=True):
        (wanted,) = _seen(dense[0], dense[1], theirs, norm)
        found, x, y = _seen(own[0], own[1], ours, norm, reader)
        missing = wanted.double() - found.double() + y.double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double() if has_bias else x.double()
        xx += x.T @ x
        xy += x.T @ missing
    if not bool(torch.isfinite(xx).all() and torch.isfinite(xy).all()):
        raise NonFiniteError(f"layer {own[0]}: calibration gives activations that are not finite; look at data and weights.")
    return xx, xy


def _seen(name: str, layer: nn.Module, call: Call, norm: str, reader: nn.Module | None = None) -> list[Tensor]:
    """The sum at the end of a layer, before its ``norm`` if there is one; of a ``reader`` also what it reads and puts out."""
    ends: list[Tensor] = []
    read: list[Tensor] = []
    hooks = []
    if norm:
        hooks.append(layer.get_submodule(norm).register_forward_pre_hook(lambda _, args: ends.append(args[0])))
    if reader is not None:
        hooks.append(reader.register_forward_hook(lambda _, args, result: read.extend((args[0], result))))
    try:
        output = call.run(name, layer)
    finally:
        for hook in hooks:
            hook.remove()
    return [counted(name, value, call.mask) for value in (ends[-1] if norm else output, *read)]


def _closing_norm(name: str, layer: nn.Module, call: Call) -> str:
    """Where in ``layer`` the normalisation is whose result is the layer's; empty where it ends with a sum."""
    results: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, result, path=path: results.__setitem__(path, result))
        for path, module in layer.named_modules()
        if path and type(module).__name__.endswith("Norm")
    ]
    try:
        output = call.run(name, layer)
    finally:
        for hook in hooks:
            hook.remove()
    closing = [path for path, result in results.items() if result.data_ptr() == output.data_ptr()]
    return closing[-1] if closing else ""
