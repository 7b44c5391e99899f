"""Shapes that a stock config cannot say: measured on a model, and given to a model that has no weights yet."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.anatomy import Family
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.families import FAMILIES, layers_of, stacks_of
from hf_shrink.heads import fit_attributes, heads_of, set_head_dim
from hf_shrink.targets import features, projections


def odd_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """``(in_features, out_features)`` of what a model built from ``model.config`` would have in another size.

    Projections, and tables with one column a head. Paths are below the base model. Empty where plain transformers builds the
    right model from the config alone.

    Raises:
        MismatchError: such a module is outside the base model, where no record of it can be kept.
    """
    expected = {name: _sizes(module) for name, module in _sized(_blueprint(model)).items()}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    found = {}
    for name, module in _sized(model).items():
        if (sizes := _sizes(module)) == expected.get(name):
            continue
        if not name.startswith(prefix):
            raise MismatchError(
                f"{name}: {sizes} in and out, its config says {expected.get(name)}; no checkpoint can hold that."
            )
        found[name.removeprefix(prefix)] = sizes
    return found


def odd_head_dim(model: PreTrainedModel) -> int | None:
    """Features of a head where a model built from ``model.config`` would have another number; None where it would not.

    Raises:
        MismatchError: heads of several sizes.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return None
    sizes = [
        {heads_of(layer, a).head_dim for stack, found in stacks_of(m, family) for layer in found for a in stack.attentions}
        for m in (model, _blueprint(model))
    ]
    if sizes[0] == sizes[1]:
        return None
    if len(sizes[0]) > 1:
        raise MismatchError(f"{type(model).__name__}: heads of {sorted(sizes[0])} features; no checkpoint can hold that.")
    return sizes[0].pop()


def resize(model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]], head_dim: int | None = None) -> None:
    """Give modules of a model without weights (on meta) the sizes that ``shapes`` says, and its heads ``head_dim``, in place.

    Raises:
        IntegrityError: a path that names nothing of the kind: the record is another model's.
    """
    modules, family = _sized(model.base_model), FAMILIES.get(model.config.model_type)
    for path, (in_features, out_features) in shapes.items():
        module = modules.get(path)
        if module is None and _is_elsewhere(model, path):
            continue
        if module is None:
            raise IntegrityError(f"config.json: shapes name {path!r}, which {type(model.base_model).__name__} does not have.")
        if isinstance(module, nn.Embedding):
            module.weight = _empty(module.weight, in_features, out_features)
            module.num_embeddings, module.embedding_dim = in_features, out_features
            continue
        if isinstance(module, Conv1D):
            module.weight = _empty(module.weight, in_features, out_features)
            module.nx, module.nf = in_features, out_features
        else:
            module.weight = _empty(module.weight, out_features, in_features)
            module.in_features, module.out_features = in_features, out_features
        if module.bias is not None:
            module.bias = _empty(module.bias, out_features)
    if family is None and head_dim is not None:
        raise IntegrityError(
            f"config.json: head_dim {head_dim}, but {model.config.model_type!r} is no family with known heads."
        )
    if family is not None:
        if head_dim is not None:
            set_head_dim(model, family, head_dim)
            _check_heads(model, family, head_dim)
        fit_attributes(model, family)


def _check_heads(model: Any, family: Family, head_dim: int) -> None:
    for stack, found in stacks_of(model, family):
        for layer in found:
            for attention in stack.attentions:
                wide = features(projections(layer)[attention.output])[0]
                if wide % head_dim:
                    raise IntegrityError(f"config.json: head_dim {head_dim} does not divide {wide} features of heads.")


def _is_elsewhere(model: PreTrainedModel, path: str) -> bool:
    """Whether ``path`` is in a stack that the family has and this model does not: an encoder opens without its decoder."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return False
    here = {stack.layers for stack, _ in stacks_of(model, family)}
    return any(path.startswith(f"{stack.layers}.") for stack in family.stacks if stack.layers not in here)


def _blueprint(model: PreTrainedModel) -> PreTrainedModel:
    with torch.device("meta"):
        return type(model)(model.config)


def _sized(model: Any) -> dict[str, nn.Linear | Conv1D | nn.Embedding]:
    """Projections, and the tables inside the layers: word and position embeddings have the size that the config says."""
    family = FAMILIES.get(model.config.model_type)
    inside = {id(m) for layer in layers_of(model, family) for m in layer.modules()} if family is not None else set()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Embedding) and id(module) in inside)
    }


def _sizes(module: nn.Linear | Conv1D | nn.Embedding) -> tuple[int, int]:
    return (module.num_embeddings, module.embedding_dim) if isinstance(module, nn.Embedding) else features(module)


def _empty(like: torch.Tensor, *sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*sizes, dtype=like.dtype, device=like.device), requires_grad=like.requires_grad)
