"""What one mask reaches: parameters, and how the mask's entries lie in each."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.masks import removed_count
from hf_shrink.targets import Projection, oriented

Axis: TypeAlias = Literal["entry", "output", "input"]
"""What one mask entry is in a parameter: one number (or block of numbers), outputs (rows and biases), or inputs (columns)."""


@dataclass(frozen=True)
class Piece:
    """One parameter that a mask reaches; it is read from the module each time, since training may replace it.

    Along its axis a parameter is laid out as ``blocks`` x units x ``inner``: a neuron is one row (1, 1), a head is ``head_dim``
    neighbouring rows (1, head_dim), and in a projection that holds all queries, then keys, then values it is three such runs
    (3, head_dim). With the axis ``entry`` a mask entry is a rectangle of ``block``.
    """

    name: str
    module: Projection | nn.Embedding
    attribute: Literal["weight", "bias"]
    axis: Axis
    blocks: int = 1
    inner: int = 1
    block: tuple[int, int] = (1, 1)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        found = getattr(self.module, self.attribute)
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def dim(self) -> int:
        """The stored dimension along which units lie; not for the axis ``entry``."""
        if self.attribute == "bias":
            return 0
        transposed = isinstance(self.module, Conv1D)
        return int((self.axis == "input") != transposed)

    @property
    def weight(self) -> Tensor:
        """The weight as ``[out_features, in_features]``, a view."""
        assert not isinstance(self.module, nn.Embedding)
        return oriented(self.module)

    def flat(self, mask: Tensor) -> Tensor:
        """``mask`` ``[units]`` as one entry for each index along ``dim``."""
        return mask.repeat_interleave(self.inner).repeat(self.blocks)

    def entries(self, mask: Tensor) -> Tensor:
        """``mask`` of blocks as one entry for each weight ``[out_features, in_features]``."""
        return mask if self.block == (1, 1) else mask.repeat_interleave(self.block[0], 0).repeat_interleave(self.block[1], 1)

    def spread(self, mask: Tensor) -> Tensor:
        """``mask`` in a form that broadcasts over the parameter as the module stores it."""
        if self.axis == "entry":
            wide = self.entries(mask)
            return wide.T if isinstance(self.module, Conv1D) else wide
        flat = self.flat(mask)
        shape = [1] * self.parameter.dim()
        shape[self.dim] = flat.numel()
        return flat.view(shape)


@dataclass(frozen=True)
class Group:
    """One mask and everything it reaches.

    Attributes:
        name: of the mask, also in checkpoints: the projection's for single weights and blocks; for units what they are in and
            their kind, as in ``encoder.layer.0:ffn``.
        entry: the config it comes from, as in ``pruning.0``.
        config: that config.
        shape: of the mask: ``[out_features, in_features]``, a grid of blocks, or ``[units]``.
        sparsity: the fraction that the schedule ends at: the config's, after rounding to a width; None where a threshold
            decides.
        pieces: the parameters that the mask reaches.
        multiple: kept units come in multiples of this.
    """

    name: str
    entry: str
    config: PruningConfig
    shape: torch.Size
    sparsity: float | None
    pieces: tuple[Piece, ...]
    multiple: int = 1

    @property
    def removed(self) -> int | None:
        """Entries that are gone when the schedule has ended, an exact count; None where a threshold decides."""
        return None if self.sparsity is None else removed_count(self.sparsity, self.shape.numel())

    @property
    def weights(self) -> tuple[Piece, ...]:
        """The weights of projections: what a criterion scores."""
        return tuple(p for p in self.pieces if p.attribute == "weight" and not isinstance(p.module, nn.Embedding))
