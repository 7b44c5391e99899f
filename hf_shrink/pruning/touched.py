"""What pruning would do to a model, counted without touching it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.pieces import Group
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.units import NOUNS
from hf_shrink.pruning.window import window_of
from hf_shrink.targets import projections


@dataclass(frozen=True)
class Touched:
    """One row of a plan: what one mask does in the end.

    Attributes:
        module: the projection, or the layer or attention block whose units go, by full name.
        entry: the config that asks for it, as in ``pruning.0``.
        structure: that config's structure.
        unit: what is counted: ``weights``, ``blocks``, ``neurons`` or ``heads``.
        kept: how many stay; None where a threshold decides, or an allocation that is not uniform.
        before: how many there are now.
        multiple: what kept units come in multiples of.
    """

    module: str
    entry: str
    structure: str
    unit: str
    kept: int | None
    before: int
    multiple: int


@dataclass(frozen=True)
class PruningPlan:
    """What pruning would do to a model.

    Attributes:
        rows: what is touched, in the order of the entries.
        skipped: projections that no entry touches, by full name.
        zeros: parameters set to zero that stay in the file; those of a threshold are not known before.
        totals: for each entry that is not cut at once, how many units or weights stay; None where a threshold decides.
    """

    rows: tuple[Touched, ...]
    skipped: tuple[str, ...]
    zeros: int
    totals: dict[str, int | None]


def touched(model: Any, configs: PruningConfig | Sequence[PruningConfig], total_steps: int | None = None) -> PruningPlan:
    """What the masks of ``configs`` would do to ``model``, which may be on the meta device: only shapes are read.

    Args:
        model: a transformers model.
        configs: one entry or several that do not overlap.
        total_steps: optimizer steps of the training to come; None leaves the schedules unchecked.

    Raises:
        RecipeError: targets or, with ``total_steps``, schedules that cannot be meant.
        MismatchError: a model that cannot be pruned.
    """
    entries = as_tuple(configs)
    if total_steps is not None:
        for place, entry in named(entries):
            if not entry.is_cut_at_once:
                window_of(entry, total_steps, place)
    groups = groups_of(model, entries)
    reached = {id(piece.module) for group in groups for piece in group.pieces}
    return PruningPlan(
        rows=tuple(_row(group) for group in groups),
        skipped=tuple(name for name, module in projections(model).items() if id(module) not in reached),
        zeros=sum(_zeros(group) for group in groups),
        totals={entry: _total([g for g in groups if g.entry == entry]) for entry in dict.fromkeys(g.entry for g in groups)},
    )


def outline(model: Any, configs: PruningConfig | Sequence[PruningConfig]) -> PreTrainedModel:
    """A copy of ``model`` in the shapes that pruning would leave; which units stay means nothing. For models on meta."""
    cut = [group for group in groups_of(model, as_tuple(configs)) if group.config.makes_smaller]
    return shrink(model, {group.name: torch.arange(group.shape.numel()) >= (group.removed or 0) for group in cut})


def _row(group: Group) -> Touched:
    before, config = group.shape.numel(), group.config
    unit = NOUNS.get(config.structure, "weights" if config.block is None else "blocks")
    known = group.removed is not None and config.allocation == "uniform"
    kept = before - group.removed if known and group.removed is not None else None
    return Touched(
        group.name.rpartition(":")[0] or group.name, group.entry, config.structure, unit, kept, before, group.multiple
    )


def _zeros(group: Group) -> int:
    if group.config.makes_smaller or group.removed is None:
        return 0
    high, wide = group.config.block or (1, 1)
    return group.removed * high * wide


def _total(groups: Sequence[Group]) -> int | None:
    removed = [group.removed for group in groups]
    if any(count is None for count in removed):
        return None
    return sum(group.shape.numel() - (count or 0) for group, count in zip(groups, removed, strict=True))
