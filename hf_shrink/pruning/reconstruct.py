"""Refit what reads the units that stay, so that it puts out what it did with all of them: least squares on calibration data."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import NonFiniteError
from hf_shrink.pruning.calibrate import evaluating
from hf_shrink.pruning.forward import Forward
from hf_shrink.pruning.pieces import Group
from hf_shrink.targets import oriented

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
        groups: of ``model``, in the order of its layers.
        masks: True = keep, by group name.
        batches: keyword arguments of the forward pass; padding does not count.

    Raises:
        NonFiniteError: the calibration gives numbers that are none.
    """
    names = {id(module): name for name, module in model.named_modules()}
    for group in groups:
        for piece in group.pieces:
            if piece.axis != "input":
                piece.parameter.mul_(piece.spread(masks[group.name]))
        for reader in (piece for piece in group.weights if piece.axis == "input"):
            keep = reader.flat(masks[group.name].to(reader.parameter.device)).nonzero().flatten()
            xx, xy = _moments(dense, model, names[id(reader.module)], keep, batches)
            _refit(reader.module, keep, xx, xy)


def _moments(
    dense: PreTrainedModel, model: PreTrainedModel, name: str, keep: Tensor, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``X'X`` and ``X'Y`` in float64: kept inputs in ``model`` (and a one, where there is a bias), outputs in ``dense``."""
    reader, teacher = model.get_submodule(name), dense.get_submodule(name)
    has_bias = getattr(reader, "bias", None) is not None
    size = len(keep) + has_bias
    device = oriented(reader).device  # type: ignore[arg-type]
    xx = torch.zeros(size, size, dtype=torch.float64, device=device)
    xy = torch.zeros(size, oriented(reader).shape[0], dtype=torch.float64, device=device)  # type: ignore[arg-type]
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for which, root, module in (("inputs", model, reader), ("outputs", dense, teacher)):
            stack.enter_context(evaluating(root))
            forward = Forward(root, training_only=False)
            forward.attach(stack)
            stack.callback(module.register_forward_hook(_keeper(seen, which, forward, name)).remove)
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            dense(**inputs)
            model(**inputs)
            x = seen["inputs"].double()[:, keep]
            if has_bias:
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            xx += x.T @ x
            xy += x.T @ seen["outputs"].double()
    if not bool(torch.isfinite(xx).all() and torch.isfinite(xy).all()):
        raise NonFiniteError(f"{name}: calibration gives activations that are not finite; look at the data or the weights.")
    return xx, xy


def _keeper(seen: dict[str, Tensor], which: str, forward: Forward, name: str) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        features = args[0] if which == "inputs" else output
        rows, counted = forward.layout(module, features, name)
        seen[which] = rows.flatten(0, 1) if counted is None else rows[counted]

    return hook


def _refit(reader: Any, keep: Tensor, xx: Tensor, xy: Tensor) -> None:
    ridge = DAMPING * xx.diagonal()[: len(keep)].mean()
    xx.diagonal()[: len(keep)] += ridge  # the constant feature is not held back
    weight = oriented(reader)
    before = weight[:, keep].double()
    xy[: len(keep)] += ridge * before.T  # towards the weights as they are: with no data to say otherwise nothing changes
    solution = torch.linalg.solve(xx, xy)
    fitted = torch.zeros_like(weight)
    fitted[:, keep] = solution[: len(keep)].T.to(weight.dtype)
    weight.copy_(fitted)
    if len(solution) > len(keep):
        reader.bias.copy_(solution[-1].to(reader.bias.dtype))
