"""A model with fewer tokens: whatever its config sizes by the vocabulary is cut, and ids follow wherever they are kept."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import MismatchError
from hf_shrink.pruning.token_ids import holders, renumber_config, vocabulary_size


@torch.no_grad()
def cut_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy that knows only the tokens in ``kept``; the new id of a token is its place there. ``model`` stays as it is.

    What to cut is read off two models without weights, one with the old and one with the new vocabulary in its config: a
    parameter or buffer whose shape differs between them is cut, and a number such as ``padding_idx`` that differs is taken
    over. So input embeddings, output embeddings and their bias follow in every family, tied ones once. Where positions are
    counted from the padding token, as in RoBERTa, and that token moves, the table of positions moves along. Dtype, device,
    training mode, ``requires_grad`` and ties are kept.

    Args:
        model: a float transformers model; may be on meta.
        kept: old ids, ascending, as ``kept_tokens`` gives them.

    Raises:
        MismatchError: a model that is quantised, carries an adapter or has parameters sized by the vocabulary in a way that its
            config does not say; ``kept`` that does not fit, or lacks an id that a config names.
    """
    size = vocabulary_size(model)
    _check_cuttable(model, kept, size)
    small = copy.deepcopy(model)
    before = _blueprint(small)
    for holder in holders(small):
        renumber_config(holder, {old: new for new, old in enumerate(kept)}, size)
    _move_positions(small, before)
    after = _blueprint(small)
    axes = _cut_axes(small, before, after, size)
    keep = torch.tensor(kept)
    replaced: dict[int, Tensor] = {}
    for name, tensor in list(_tensors(small)):
        if name in axes:
            module, _, attribute = name.rpartition(".")
            if id(tensor) not in replaced:
                replaced[id(tensor)] = _selected(tensor, axes[name], keep)
            setattr(small.get_submodule(module), attribute, replaced[id(tensor)])
    _take_over_numbers(small, before, after)
    return small


def _check_cuttable(model: Any, kept: Sequence[int], size: int) -> None:
    name = type(model).__name__
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise MismatchError(f"{name} is quantised already: cut its vocabulary first, then quantise.")
    if carries_adapter(model):
        raise MismatchError(f"{name} carries an adapter: call merge_and_unload() and cut the result.")
    if not kept or any(second <= first for first, second in pairwise(kept)) or kept[0] < 0 or kept[-1] >= size:
        span = f"{len(kept)} ids" + (f" from {min(kept)} to {max(kept)}" if kept else "")
        raise MismatchError(f"kept: {span} for {name} with {size} tokens; pass ids below {size}, ascending, each once.")
    rows = model.get_input_embeddings().weight.shape[0]
    if rows != size:
        raise MismatchError(f"{name} embeds {rows} tokens, its config says vocab_size {size}. Save it with a config that fits.")


def _blueprint(model: PreTrainedModel) -> PreTrainedModel:
    """What plain transformers builds from the config: shapes and numbers, no weights."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, a tied one under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _cut_axes(small: Any, before: nn.Module, after: nn.Module, size: int) -> dict[str, int]:
    """Name -> the axis that runs over the vocabulary, for every parameter and buffer that has one."""
    old = {name: tuple(tensor.shape) for name, tensor in _tensors(before)}
    new = {name: tuple(tensor.shape) for name, tensor in _tensors(after)}
    ends = {id(end.weight) for end in (small.get_input_embeddings(), small.get_output_embeddings()) if end is not None}
    axes = {}
    for name, tensor in _tensors(small):
        shape = tuple(tensor.shape)
        if old.get(name) == new.get(name):
            if size in shape and (name not in old or id(tensor) in ends):
                raise MismatchError(f"{name} {list(shape)}: has {size} entries, as the vocabulary has, but no config says so.")
            continue
        changed = [axis for axis, length in enumerate(shape) if length != new[name][axis] != old[name][axis]]
        if not changed and shape == new[name]:
            continue  # a table of positions that has been cut already
        if len(changed) != 1 or shape[changed[0]] != size:
            raise MismatchError(
                f"{name} {list(shape)}: with another vocabulary it would be {list(new[name])}, which is no cut along one axis."
            )
        axes[name] = changed[0]
    return axes


def _selected(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    values = tensor.detach().index_select(axis, keep.to(tensor.device))
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _take_over_numbers(small: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Set what modules keep beside their weights: ``num_embeddings``, ``out_features``, ``vocab_size``, ``padding_idx``."""
    modules = dict(small.named_modules())
    for (name, old), new in zip(before.named_modules(), after.modules(), strict=True):
        for key, value in vars(new).items():
            if name in modules and type(value) is int and value != vars(old).get(key):
                setattr(modules[name], key, value)


def _move_positions(small: PreTrainedModel, before: nn.Module) -> None:
    """Where positions are counted from the padding token on, shift their table by as much as that token has moved.

    The table loses the rows in front, so the longest text stays the same; only the config says fewer positions.
    """
    now = _blueprint(small)
    for (name, old), new in zip(before.named_modules(), now.modules(), strict=True):
        if vars(old).get("padding_idx") == vars(new).get("padding_idx") or not _own_table(old, new):
            continue
        table, parent = small.get_submodule(name), small.get_submodule(name.rpartition(".")[0])
        rows = small.config.max_position_embeddings
        if type(table) is not nn.Embedding or table.num_embeddings != rows:
            raise MismatchError(
                f"{name} depends on the padding token's id, which would move from {vars(old)['padding_idx']} to "
                f"{vars(new)['padding_idx']}; keep all ids below it too."
            )
        shift = int(vars(old)["padding_idx"]) - int(vars(new)["padding_idx"])
        table.weight = nn.Parameter(table.weight.detach()[shift:].clone(), requires_grad=table.weight.requires_grad)
        for key, buffer in list(parent.named_buffers(recurse=False)):
            if buffer.shape[-1] == rows:
                setattr(parent, key, buffer[..., : rows - shift].clone())
        small.config.max_position_embeddings = rows - shift


def _own_table(old: nn.Module, new: nn.Module) -> bool:
    """True where a module has numbers of its own that the vocabulary does not size."""
    shapes: Mapping[str, Any] = {name: tensor.shape for name, tensor in _direct(new)}
    return any(tensor.is_floating_point() and tensor.shape == shapes.get(name) for name, tensor in _direct(old))


def _direct(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
