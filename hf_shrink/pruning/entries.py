"""Entries of the ``pruning`` section as a whole: where each stands, and what follows for it from other sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_shrink.pruning.config import PruningConfig

FOUR_BIT_MULTIPLE = 64
"""Inputs of a projection that four-bit kernels take in whole tiles."""


def named(entries: Sequence[PruningConfig]) -> list[tuple[str, PruningConfig]]:
    """Each entry and where its user finds it, as ``pruning.0``: its place in the recipe, even where others are left out."""
    return [(entry._place or f"pruning.{index}", entry) for index, entry in enumerate(entries)]


def placed(entries: Sequence[PruningConfig]) -> tuple[PruningConfig, ...]:
    """Copies that know their places, for those who take only some of them."""
    copies = tuple(entry.model_copy() for entry in entries)
    for place, entry in named(copies):
        entry._place = place
    return copies


def seeded(entries: Sequence[PruningConfig], seed: int) -> tuple[PruningConfig, ...]:
    """``entries`` that draw by ``seed``, where they say no seed of their own."""
    return tuple(entry.model_copy(update={"seed": seed}) if entry.draws and entry.seed is None else entry for entry in entries)


def fit_for_bits(entries: Sequence[PruningConfig], bits: int | str | None) -> tuple[PruningConfig, ...]:
    """``entries`` with widths that the kernels of a model stored in so many bits (or auto) can take, where they say none."""
    return tuple(
        entry.model_copy(update={"round_to": FOUR_BIT_MULTIPLE})
        if bits in (4, "auto") and entry.round_to is None and entry.structure in ("heads", "ffn", "hidden")
        else entry
        for entry in entries
    )
