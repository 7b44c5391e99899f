"""Which part of each stored tensor a pruned model is built from: decided on a model without weights, from the files alone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.loading.checkpoint import Checkpoint
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cuts_of
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.hidden import cut_hidden, hidden_to_keep, is_rms_norm
from hf_shrink.pruning.layers import drop_layers, layers_to_keep
from hf_shrink.pruning.lending import Lend
from hf_shrink.pruning.masks import pack, unpack
from hf_shrink.pruning.oneshot import check_at_once, needs_data
from hf_shrink.pruning.pieces import Group
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.renumbered import refuse_numbers
from hf_shrink.pruning.scores import scores_of, watched_of
from hf_shrink.pruning.selection import next_mask
from hf_shrink.pruning.statistics import Recorder
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.units import NOUNS
from hf_shrink.pruning.widths import hidden_dims

_PIECE = 2**13
"""Bytes of a packed mask that are unpacked at once."""

CRITERIA = ("magnitude", "magnitude_l2", "random")
"""What scores weights by themselves."""


def check_without_data(configs: Sequence[PruningConfig]) -> None:
    """Refuse, with a ``RecipeError``, entries that need more than one look at each weight by itself."""
    for place, entry in named(configs):
        what = "reconstruct" if entry.reconstruct else f"criterion {getattr(entry.criterion, '__name__', entry.criterion)}"
        if needs_data(entry) or entry.criterion not in CRITERIA:
            raise RecipeError(
                f"{place}: {what} cannot be used while loading, where no data runs through the model; "
                f"known there: {', '.join(CRITERIA)}.\nOr load the model in float and call prune(model, config, calibration)."
            )
        if entry.allocation == "global" and not entry.makes_smaller:
            raise RecipeError(
                f"{place}.allocation: global compares all weights at once, which loading never holds; "
                "leave it out, or load the model in float and call prune()."
            )
    if configs:
        check_at_once(configs)


class Narrowing:
    """What becomes of each tensor. Names are those that the model has before anything leaves it."""

    def __init__(self) -> None:
        self.layers: dict[str, tuple[int, ...]] = {}  # path of a list of layers -> which of them stay
        self._parts: dict[str, list[tuple[int, Tensor, float]]] = {}
        self._zeros: dict[str, tuple[Group, Tensor]] = {}
        self._room: dict[torch.dtype, Tensor] = {}
        self._largest = 0

    def __contains__(self, name: str) -> bool:
        return name in self._parts or name in self._zeros

    def apply(self, name: str, tensor: Tensor, *, passing: bool = False) -> Tensor:
        """The part of the stored ``tensor`` that is left of it; ``passing``: nobody reads the result after the next call."""
        for dim, index, factor in self._parts.get(name, ()):
            tensor = tensor.index_select(dim, index.to(tensor.device))
            tensor = tensor if factor == 1.0 else tensor * factor
        if name in self._zeros:
            group, packed = self._zeros[name]
            lasting = not passing or tensor.device.type != "cpu"
            mask = unpack(packed, group.shape, name=name) if lasting else self._mask(group, packed)
            product = None if lasting else self._free(tensor.dtype, tensor.shape)
            tensor = torch.mul(tensor, group.pieces[0].spread(mask).to(tensor.device), out=product)
        return tensor

    def _mask(self, group: Group, packed: Tensor) -> Tensor:
        """As ``unpack``, by small pieces."""
        mask = self._free(torch.bool, group.shape)
        flat = mask.view(-1)
        for piece, bits in zip(torch.split(flat, 8 * _PIECE), torch.split(packed, _PIECE), strict=True):
            piece.copy_(torch.from_numpy(np.unpackbits(bits.numpy(), count=piece.numel())))
        return mask

    def _free(self, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Memory for any of the weights that lose entries, the same each time.

        Taken from the allocator and given back for each weight, it would leave gaps between what is made of the weights, and
        they add up to the size of the model.
        """
        if dtype not in self._room:
            self._room[dtype] = torch.empty(self._largest, dtype=dtype)
        return self._room[dtype][: shape.numel()].view(shape)

    def original(self, name: str) -> str:
        """What ``name`` was called before layers in front of it left."""
        for path, kept in self.layers.items():
            if name.startswith(f"{path}."):
                number, _, rest = name.removeprefix(f"{path}.").partition(".")
                return f"{path}.{kept[int(number)]}.{rest}" if number else name
        return name

    def keep(self, name: str, dim: int, index: Tensor, factor: float = 1.0) -> None:
        """Of the tensor ``name`` only ``index`` along ``dim`` is left, times ``factor``."""
        self._parts.setdefault(name, []).append((dim, index, factor))

    def zero(self, name: str, group: Group, packed: Tensor) -> None:
        """The tensor ``name`` keeps its shape and loses what the mask removes that is in ``packed``, one bit an entry."""
        self._zeros[name] = (group, packed)
        self._largest = max(self._largest, group.pieces[0].parameter.numel())


def narrow(
    model: PreTrainedModel, configs: Sequence[PruningConfig], checkpoint: Checkpoint
) -> tuple[PreTrainedModel, Narrowing]:
    """The pruned model without weights, and where its weights come from; the same as ``prune`` makes of the loaded model.

    Args:
        model: on meta; stays as it is.
        configs: what ``check_without_data`` lets through.
        checkpoint: its weights.

    Raises:
        RecipeError: what ``prune`` refuses, or weights to choose from that are in no file.
        NonFiniteError: a score is NaN or infinite.
    """
    refuse_numbers(model, configs)
    done, small = Narrowing(), model
    for entry, config in cuts_of(configs):
        if config.structure == "layers":
            lend = partial(_lent, _owners(small, done), done, checkpoint)
            kept = layers_to_keep(small, config, entry, None, lend)
            paths = {_path(small, layers): kept for _, layers in stacks_of(small, family_of(small, entry))}
            small = drop_layers(small, kept)
            done.layers.update(paths)
            continue
        keep = hidden_to_keep(small, config, entry, partial(_lent, _owners(small, done), done, checkpoint, may_be_new=True))
        index = keep.nonzero().flatten()
        for name, dims in hidden_dims(small).items():
            scale = (keep.numel() / len(index)) ** 0.5 if is_rms_norm(small.get_submodule(name.rpartition(".")[0])) else 1.0
            for dim in dims:
                done.keep(done.original(name), dim, index, scale)
        small = cut_hidden(small, keep)
    return _masked(small, configs, checkpoint, done), done


def _masked(
    small: PreTrainedModel, configs: Sequence[PruningConfig], checkpoint: Checkpoint, done: Narrowing
) -> PreTrainedModel:
    """Single weights become zeros, heads and neurons leave."""
    if all(config.is_cut_at_once for config in configs):
        return small
    lend = partial(_lent, _owners(small, done), done, checkpoint)
    groups = groups_of(small, configs)  # with all that it refuses
    _mask_weights([group for group in groups if not group.config.makes_smaller], lend, done)
    leaving = [config for config in configs if config.structure in NOUNS]
    if not leaving:
        return small
    pruner = Pruner(small, leaving, total_steps=1, lend=lend)
    pruner.update(1)
    masks = pruner.masks()
    for group in pruner.groups:
        for piece in group.pieces:
            index = piece.flat(masks[group.name]).nonzero().flatten()
            done.keep(done.original(piece.name), piece.dim, index)
    return shrink(small, masks)


def _mask_weights(groups: Sequence[Group], lend: Lend, done: Narrowing) -> None:
    """Decide on the masks of single weights, one projection after the other.

    All bits are in one tensor that is there from the start: kept between the large scores, small ones would leave gaps in
    memory that fit nothing.
    """
    sizes = [math.ceil(group.shape.numel() / 8) for group in groups]
    packed = torch.split(torch.empty(sum(sizes), dtype=torch.uint8), sizes)
    for group, bits in zip(groups, packed, strict=True):
        watched = watched_of(group)
        recorder = Recorder(watched)
        with lend([group.pieces[0].module]):
            scores = scores_of(group, {item.name: recorder.stats(item.name) for item in watched})
            bits.copy_(pack(next_mask(group, scores, group.sparsity)))
        done.zero(done.original(group.pieces[0].name), group, bits)


def _owners(model: nn.Module, done: Narrowing) -> dict[int, str]:
    """Each module's name before anything left."""
    return {id(module): done.original(f"{name}.") if name else "" for name, module in model.named_modules()}


@contextmanager
def _lent(
    owners: dict[int, str],
    done: Narrowing,
    checkpoint: Checkpoint,
    modules: Iterable[nn.Module],
    may_be_new: bool = False,
) -> Iterator[None]:
    """Inside, ``modules`` have what is left of their weights; see ``pruning.lending``."""
    borrowed: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in modules:
            for attribute, parameter in list(module.named_parameters(recurse=False)):
                name = f"{owners[id(module)]}{attribute}"
                if name in checkpoint:
                    borrowed.append((module, attribute, parameter))
                    module._parameters[attribute] = nn.Parameter(_read(name, checkpoint, done), requires_grad=False)
                elif not may_be_new and attribute == "weight":
                    _refuse_new(name, checkpoint)
        yield
    finally:
        for module, attribute, parameter in borrowed:
            module._parameters[attribute] = parameter


def _refuse_new(name: str, checkpoint: Checkpoint) -> None:
    if name not in checkpoint:
        raise RecipeError(
            f"pruning: {name} is in no file of the checkpoint, so nothing says what it is worth; exclude it, or "
            "load the model, train it and call prune()."
        )


def _read(name: str, checkpoint: Checkpoint, done: Narrowing) -> Tensor:
    tensor = checkpoint.read(name)
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise NonFiniteError(f"{name}: NaN or infinite values in the checkpoint; use one that is whole.")
    return done.apply(name, tensor)


def _path(model: Any, layers: nn.ModuleList) -> str:
    return next(str(name) for name, module in model.named_modules() if module is layers)
