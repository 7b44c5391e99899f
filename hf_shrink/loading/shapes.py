"""Shapes that a stock config cannot say: measured on a model, and given to a model that has no weights yet."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.targets import projections


def odd_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """``(in_features, out_features)`` of every projection that a model built from ``model.config`` would have otherwise.

    Paths are below the base model. Empty where plain transformers builds the right model from the config alone.

    Raises:
        MismatchError: such a projection is outside the base model, where no record of it can be kept.
    """
    with torch.device("meta"):
        blueprint = type(model)(model.config)
    expected = {name: _sizes(layer) for name, layer in projections(blueprint).items()}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    found = {}
    for name, layer in projections(model).items():
        if (sizes := _sizes(layer)) == expected.get(name):
            continue
        if not name.startswith(prefix):
            raise MismatchError(
                f"{name}: {sizes} in and out, its config says {expected.get(name)}; no checkpoint can hold that."
            )
        found[name.removeprefix(prefix)] = sizes
    return found


def resize(model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Give projections of a model without weights (on meta) the sizes that ``shapes`` says, in place.

    Raises:
        IntegrityError: a path that names no projection: the record is another model's.
    """
    layers = projections(model.base_model)
    for path, (in_features, out_features) in shapes.items():
        layer = layers.get(path)
        if layer is None:
            raise IntegrityError(f"config.json: shapes name {path!r}, which {type(model.base_model).__name__} does not have.")
        if isinstance(layer, Conv1D):
            layer.weight = _empty(layer.weight, in_features, out_features)
            layer.nx, layer.nf = in_features, out_features
        else:
            layer.weight = _empty(layer.weight, out_features, in_features)
            layer.in_features, layer.out_features = in_features, out_features
        if layer.bias is not None:
            layer.bias = _empty(layer.bias, out_features)


def _sizes(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Read off the attributes, because four-bit weights are stored flat."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def _empty(like: torch.Tensor, *sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*sizes, dtype=like.dtype, device=like.device), requires_grad=like.requires_grad)
