"""From masks to a physically smaller model: a copy whose modules are cut, never a parameter resized in place."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import MismatchError
from hf_shrink.families import FAMILIES, Family, named_layers
from hf_shrink.targets import Projection, oriented, projections


@torch.no_grad()
def shrink(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> PreTrainedModel:
    """A smaller copy with the outputs of ``model`` after masking; ``model`` stays as it is.

    Masks of projections become zeros, masks of layers take their feed-forward neurons out. Dtype, device, training mode,
    ``requires_grad`` and tied weights are kept. Where all layers end at one width the config is changed to it.

    Args:
        model: a float model of a known family where a layer is masked.
        masks: True = keep, by full module name, as ``Pruner.masks()`` gives them: ``[out, in]`` for a projection,
            ``[neurons]`` for a transformer layer.

    Raises:
        MismatchError: a mask names nothing in the model, has another shape than it, or keeps no neuron.
    """
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    family = FAMILIES.get(small.config.model_type)
    layers = {} if family is None else named_layers(small, family)
    for name, mask in masks.items():
        module = modules.get(name)
        if isinstance(module, nn.Linear | Conv1D):
            _check_shape(name, mask, oriented(module).shape)
            oriented(module).mul_(mask.to(module.weight.device))
        elif family is not None and name in layers:
            _cut_ffn(name, layers[name], mask, family)
        else:
            raise MismatchError(
                f"mask {name!r} names no projection and no layer of {type(model).__name__}; it is another model's."
            )
    _say_width_in_config(small)
    return small


def configured_width(config: Any, family: Family) -> int:
    """The number of feed-forward neurons that a model built from ``config`` has in each layer."""
    width: int | None = getattr(config, family.ffn_width)
    return 4 * int(config.hidden_size) if width is None else width  # GPT-2's n_inner: None


def _cut_ffn(name: str, layer: nn.Module, mask: Tensor, family: Family) -> None:
    _check_shape(name, mask, torch.Size([_width(layer, family)]))
    keep = mask.nonzero().flatten()
    if not len(keep):
        raise MismatchError(f"mask {name!r} keeps 0 of {mask.numel()} neurons; at least 1 must stay.")
    for path in family.ffn_in:
        _cut(projections(layer)[path], keep, "output")
    _cut(projections(layer)[family.ffn_out], keep, "input")


def _cut(module: Projection, keep: Tensor, side: Literal["input", "output"]) -> None:
    """Give ``module`` new, smaller parameters with the outputs or inputs in ``keep``, and say so in its attributes."""
    axis = 0 if side == "output" else 1
    stored = axis if oriented(module) is module.weight else 1 - axis
    module.weight = _selected(module.weight, keep, stored)
    if side == "output" and module.bias is not None:
        module.bias = _selected(module.bias, keep, 0)
    out_features, in_features = oriented(module).shape
    if isinstance(module, Conv1D):
        module.nf, module.nx = out_features, in_features
    else:
        module.out_features, module.in_features = out_features, in_features


def _selected(parameter: Tensor, keep: Tensor, axis: int) -> nn.Parameter:
    values = parameter.detach().index_select(axis, keep.to(parameter.device))
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def _say_width_in_config(model: Any) -> None:
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return
    widths = {_width(layer, family) for layer in named_layers(model, family).values()}
    if len(widths) == 1 and widths != {configured_width(model.config, family)}:
        setattr(model.config, family.ffn_width, widths.pop())


def _width(layer: nn.Module, family: Family) -> int:
    return oriented(projections(layer)[family.ffn_out]).shape[1]


def _check_shape(name: str, mask: Tensor, shape: torch.Size) -> None:
    if mask.shape != shape:
        raise MismatchError(
            f"mask {name!r}: shape {list(mask.shape)}, the model has {list(shape)}; pass the masks made for it."
        )
