"""The hidden width, which runs through all layers: which dimensions are worth least, and a smaller copy without them."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.anatomy import Family
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.heads import fit_attributes
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.lending import Lend, in_memory
from hf_shrink.pruning.masks import keep_top
from hf_shrink.pruning.structures import ROUND_TO, check_prunable
from hf_shrink.pruning.surgery import say_in_config
from hf_shrink.pruning.units import kept_units
from hf_shrink.pruning.widths import blueprint, hidden_dims, is_accepted, named_parameters, words_for
from hf_shrink.pruning.worth import Dims, dimension_scores
from hf_shrink.targets import projections


@torch.no_grad()
def cut_hidden(model: PreTrainedModel, keep: Tensor) -> PreTrainedModel:
    """A copy with only some dimensions of the hidden width; ``model`` stays as it is.

    Attention keeps its heads and their size, feed-forward blocks their neurons; what reads and writes them gets narrower, and
    so do embeddings, norms and a head that is as wide as the model. Which axis of which parameter is the hidden width is read
    off two models without weights, of which one is twice as wide. Dtype, device, training mode, ``requires_grad`` and ties are
    kept.

    A norm reads all dimensions at once, so a model cut here is not the model with the same dimensions set to zero: a LayerNorm
    subtracts the mean of fewer numbers. An RMSNorm is multiplied by ``sqrt(all / kept)``, after which both are equal up to its
    epsilon. T5 with tied embeddings also divides by the root of the width before its language-modelling head: those logits
    grow by ``sqrt(all / kept)``. Cut the width before training.

    Args:
        model: a float model of a known family; may be on meta.
        keep: True = keep, bool ``[hidden]``.

    Raises:
        RecipeError: an unknown family.
        MismatchError: a model that is quantised or carries an adapter, a mask of another size or without an entry, or a width
            that its config cannot say.
    """
    if getattr(model.config, "add_cross_attention", False):
        raise MismatchError(
            f"{type(model).__name__}: its cross-attention reads an encoder of another width; structure: hidden cannot cut it."
        )
    family = family_of(model, "hidden")
    check_prunable(model)
    before, width = int(model.config.hidden_size), int(keep.count_nonzero())
    if keep.shape != (before,) or keep.dtype != torch.bool:
        raise MismatchError(f"keep: {keep.dtype} {list(keep.shape)}, {type(model).__name__} takes bool [{before}].")
    if width == 0:
        raise MismatchError(f"keep: 0 of {before} dimensions of the hidden width; 1 to {before} can stay.")
    dims = hidden_dims(model)
    small = copy.deepcopy(model)
    words = words_for(model, family, width)
    for holder in {id(found): found for found in _configs(small)}.values():
        for key, value in words.items():
            setattr(holder, key, value)
    old, new = blueprint(model.config, type(model)), blueprint(small.config, type(model))
    if differ := dict(old.named_parameters()).keys() ^ dict(new.named_parameters()).keys():
        raise MismatchError(
            f"hidden width {width}: a {type(model).__name__} of that width has other parameters, as {min(differ)}, because "
            "another number in its config is the same; keep another width."
        )
    _cut(small, dims, keep.nonzero().flatten())
    _take_over_numbers(small, family, old, new)
    fit_attributes(small, family)
    say_in_config(small, family)
    return small


def hidden_to_keep(model: Any, config: PruningConfig, entry: str, lend: Lend = in_memory) -> Tensor:
    """Which dimensions stay, bool ``[hidden]``: those that the criterion scores highest.

    Args:
        model: of one of the known families.
        config: with ``structure: hidden``.
        entry: where it stands, as in ``pruning.0``, for errors.
        lend: where the weights of a model on meta come from.

    Raises:
        RecipeError: all or none would stay after rounding, the criterion scores no weights, or needs data.
        MismatchError: the model is quantised or carries an adapter.
        NonFiniteError: a score is NaN or infinite.
    """
    width = hidden_width(model, config, entry)
    before = int(model.config.hidden_size)
    if width == before:
        return torch.ones(before, dtype=torch.bool)
    return keep_top(dimension_scores(model, hidden_dims(model), config, entry, lend).cpu(), before - width)


def hidden_width(model: Any, config: PruningConfig, entry: str) -> int:
    """How many dimensions stay; only shapes are read.

    The multiple of ``round_to`` that is nearest to what ``sparsity`` leaves; where the config wants one, also a multiple of the
    number of heads. Errors as in ``hidden_to_keep``.
    """
    assert config.sparsity is not None
    before, sparsity = int(model.config.hidden_size), config.sparsity
    width, multiple = rounded_width(model, config, entry, sparsity)
    if round((1 - sparsity) * before) == 0:
        raise RecipeError(
            f"{entry}.sparsity: {sparsity} removes {before} of {before} dimensions of the hidden width; at least 1 must stay."
        )
    if sparsity > 0 and width == before:
        raise RecipeError(
            f"{entry}.round_to: sparsity {sparsity} keeps all {before} dimensions of the hidden width after rounding to "
            f"multiples of {multiple}; lower round_to or raise sparsity."
        )
    return width


def rounded_width(model: Any, config: PruningConfig, entry: str, sparsity: float) -> tuple[int, int]:
    """How many dimensions ``sparsity`` leaves, and the multiple they are rounded to."""
    family = family_of(model, f"{entry}.structure: hidden")
    check_prunable(model)
    before, multiple = int(model.config.hidden_size), config.round_to or ROUND_TO
    width = kept_units(before, sparsity=sparsity, multiple=multiple)
    if family.head_dim is not None and not is_accepted(model, {"hidden_size": width}):
        multiple = math.lcm(multiple, int(getattr(model.config, family.num_heads)))
        width = kept_units(before, sparsity=sparsity, multiple=multiple)
    return width, multiple


def _configs(model: nn.Module) -> Iterator[PreTrainedConfig]:
    """An encoder and a decoder may have configs of their own."""
    for module in model.modules():
        if isinstance(found := vars(module).get("config"), PreTrainedConfig):
            yield found


def _cut(small: nn.Module, dims: Dims, keep: Tensor) -> None:
    """Give every parameter that is as wide as the model only the dimensions ``keep``, in place."""
    replaced: dict[int, nn.Parameter] = {}
    for name, parameter in list(named_parameters(small)):
        if name not in dims:
            continue
        path, _, attribute = name.rpartition(".")
        module = small.get_submodule(path)
        if id(parameter) not in replaced:
            values = parameter.detach()
            for dim in dims[name]:
                values = values.index_select(dim, keep.to(values.device))
            if is_rms_norm(module):
                values = values * (parameter.numel() / len(keep)) ** 0.5
            replaced[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        setattr(module, attribute, replaced[id(parameter)])


def is_rms_norm(module: nn.Module) -> bool:
    """A factor for each feature and nothing else; transformers has a class of its own for each family."""
    own = dict(module.named_parameters(recurse=False))
    return own.keys() == {"weight"} and own["weight"].dim() == 1 and not isinstance(module, nn.LayerNorm)


def _take_over_numbers(small: nn.Module, family: Family, old: PreTrainedModel, new: PreTrainedModel) -> None:
    """Set what modules say of the hidden width beside their weights: ``in_features``, ``normalized_shape``, ``model_dim``."""
    for projection in projections(small).values():
        if isinstance(projection, Conv1D):
            projection.nx, projection.nf = projection.weight.shape
        else:
            projection.out_features, projection.in_features = projection.weight.shape
    sizes_of_heads = {
        (id(layer.get_submodule(attention.module)), attention.head_dim)
        for stack, layers in stacks_of(small, family)
        for layer in layers
        for attention in stack.attentions
    }
    before, after = old.config.hidden_size, new.config.hidden_size
    for (name, one), two in zip(old.named_modules(), new.modules(), strict=True):
        module = small.get_submodule(name)
        if isinstance(module, nn.Linear | Conv1D):
            continue
        for key, value in vars(two).items():
            follows = (vars(one).get(key), value) in ((before, after), ((before,), (after,)))
            if follows and (id(module), key) not in sizes_of_heads:
                setattr(module, key, value)
