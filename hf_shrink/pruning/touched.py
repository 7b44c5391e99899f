"""What pruning would do to a model, counted without touching it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.structures import Group, groups_of
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.window import window_of
from hf_shrink.targets import projections


@dataclass(frozen=True)
class Touched:
    """One row of a plan: what one mask does in the end.

    Attributes:
        module: the projection, or the layer for ffn, by full name.
        entry: the config that asks for it, as in ``pruning.0``.
        structure: that config's structure.
        unit: what is counted, ``weights`` or ``neurons``.
        kept: how many stay.
        before: how many there are now.
    """

    module: str
    entry: str
    structure: str
    unit: str
    kept: int
    before: int


@dataclass(frozen=True)
class PruningPlan:
    """What pruning would do to a model.

    Attributes:
        rows: what is touched, in the order of the entries.
        skipped: projections that no entry touches, by full name.
        zeros: parameters set to zero that stay in the file.
    """

    rows: tuple[Touched, ...]
    skipped: tuple[str, ...]
    zeros: int


def touched(model: Any, configs: PruningConfig | Sequence[PruningConfig], total_steps: int | None = None) -> PruningPlan:
    """What ``configs`` would do to ``model``, which may be on the meta device: only shapes are read.

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
        for index, entry in enumerate(entries):
            window_of(entry, total_steps, f"pruning.{index}")
    groups = groups_of(model, entries)
    reached = {id(piece.module) for group in groups for piece in group.pieces}
    return PruningPlan(
        rows=tuple(_row(group) for group in groups),
        skipped=tuple(name for name, module in projections(model).items() if id(module) not in reached),
        zeros=sum(group.removed for group in groups if group.config.structure == "unstructured"),
    )


def outline(model: Any, configs: PruningConfig | Sequence[PruningConfig]) -> PreTrainedModel:
    """A copy of ``model`` in the shapes that pruning would leave; which neurons stay means nothing. For models on meta."""
    cut = [group for group in groups_of(model, as_tuple(configs)) if group.config.structure == "ffn"]
    return shrink(model, {group.name: torch.arange(group.shape.numel()) >= group.removed for group in cut})


def _row(group: Group) -> Touched:
    unit = "neurons" if group.config.structure == "ffn" else "weights"
    before = group.shape.numel()
    return Touched(group.name, group.entry, group.config.structure, unit, before - group.removed, before)
