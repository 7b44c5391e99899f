"""What a task says about its rows: which columns, what they must hold, how they become tokens and batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import pyarrow as pa
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.config import DataConfig
from hf_shrink.data.rows import Columns, Rows

Columned: TypeAlias = Mapping[str, pa.Array | pa.ChunkedArray]
"""Columns of equal length by name."""

Collator: TypeAlias = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
"""From tokenised rows to one padded batch."""


@dataclass(frozen=True)
class Format(ABC):
    """One task's way with rows; a subclass is its file in this room and its entry in ``FORMATS``."""

    config: DataConfig

    unit: ClassVar[str] = "texts"
    """What a tokenised row is called."""

    @abstractmethod
    def columns(self) -> Columns:
        """What is read of the source."""

    @abstractmethod
    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """Names of the classes, and the columns of each split, checked.

        Args:
            splits: the training split first, all rows of each.

        Raises:
            MismatchError: a value that is none of the task; names the row, counted from 0.
        """

    @abstractmethod
    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """Model inputs and ``labels``, ragged, in order; ``role`` names the split in errors.

        Raises:
            MismatchError: a row has no token, or nothing to learn is left.
        """

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads tokenised rows to the longest of a batch; what is padded never counts."""

    def notes(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """What was asked for and cannot be had with this tokenizer, one sentence each."""
        return ()
