"""What quantising took from a weight, as far as a product of two thin matrices can give it back."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.targets import features, projections

_ROOM = 2**26
"""Entries of second moments in memory at a time, 256 MiB; for more layers the calibration data are run through again."""


def low_rank(error: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best ``B @ A`` of ``rank`` for ``error``: the least ``||error - BA||``, or the least error of the layer's outputs.

    Without ``moment`` this is the truncated SVD that LoftQ starts from (arXiv:2310.08659, algorithm 1, one step with the
    quantised weight held). With it, the mean of ``|(error - BA) x|^2`` over the inputs ``x`` is least (arXiv:2410.06040,
    theorem 1). Both are ``B A = U U^T error`` with the leading eigenvectors ``U`` of ``error moment error^T``: nothing is
    inverted.

    Args:
        error: weight before minus weight after, ``[out, in]``.
        rank: 1 to the smaller side.
        moment: mean of ``x x^T``, ``[in, in]``; any positive multiple of it gives the same.

    Returns:
        ``A [rank, in]`` and ``B [out, rank]`` in float32, of the same size each, so that both learn alike.
    """
    error = error.double()
    seen = error if moment is None else error @ (moment.double() / moment.diagonal().double().mean().clamp(min=1e-30))
    _, vectors = torch.linalg.eigh(seen @ error.T)
    leading = vectors[:, -rank:]
    back = leading.T @ error
    balance = (back.norm(dim=1, keepdim=True)).sqrt().clamp(min=1e-12)
    return (back / balance).float(), (leading * balance.T).float()


def input_moments(
    model: PreTrainedModel, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Of each layer its name and the mean of ``x x^T`` over the inputs that are no padding, ``[in, in]``, a few at a time.

    Args:
        model: in float and eval mode; stays as it is.
        names: projections whose inputs are ``[batch, length, in]`` or ``[batch, in]``.
        batches: keyword arguments of the forward pass; padding by ``attention_mask`` does not count.
    """
    layers, size = projections(model), 0
    group: list[str] = []
    for name in names:
        wide = features(layers[name])[0] ** 2
        if group and size + wide > _ROOM:
            yield from _moments(model, group, batches)
            group, size = [], 0
        group.append(name)
        size += wide
    yield from _moments(model, group, batches)


@torch.no_grad()
def _moments(
    model: PreTrainedModel, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)
    mask: Tensor | None = None

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            x = x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
            sums[name] = sums.get(name, 0) + x.T @ x
            counts[name] += len(x)

        return module.register_forward_pre_hook(add)

    hooks = [watch(name, model.get_submodule(name)) for name in names]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool().to(model.device) if "attention_mask" in batch else None
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if counts[name]:
            yield name, sums.pop(name) / counts[name]
