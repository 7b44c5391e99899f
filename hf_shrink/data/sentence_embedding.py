"""Texts whose vectors a student learns from its teacher; pairs of them, maybe with a number that says how alike they are."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.causal_lm import padded
from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.text_classification import strings
from hf_shrink.data.texts import text_tokens
from hf_shrink.errors import MismatchError


class SentenceFormat(Format):
    """``text``, for pairs ``text_pair``, and for pairs maybe ``similarity``, a finite number.

    Each text is a row of its own; the two of a pair follow each other. Nothing is learnt from the numbers: they stand in
    rows for judging alone.
    """

    def columns(self) -> Columns:
        """As the section names them."""
        pair = {"text_pair": self.config.text_pair_column} if self.config.text_pair_column else {}
        number = {"similarity": self.config.similarity_column} if self.config.similarity_column else {}
        return Columns({"text": self.config.text_column, **pair}, number)

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """No classes; numbers are looked through."""
        return (), [{**strings(rows), **_numbers(rows)} for rows in splits]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """One row a text, cut to ``max_length``; for judging with ``pair``, 1 where the text before is its other half."""
        sides = [name for name in ("text", "text_pair") if name in data.column_names]
        texts = [row[side] for row in data for side in sides]
        tokens = text_tokens(Dataset.from_dict({"text": texts}), tokenizer, max_length, role)
        if role == "train":
            return tokens
        tokens = tokens.add_column("pair", [place for _ in data for place in range(len(sides))])
        if "similarity" in data.column_names:
            tokens = tokens.add_column("similarity", [value for value in data["similarity"] for _ in sides])
        return tokens

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads behind the end; the label of every text is 0, which says that it counts."""
        fill = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0  # never seen: the mask is 0 there
        fills = {"input_ids": fill, "attention_mask": 0, "token_type_ids": 0}

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = padded(rows, fills={name: value for name, value in fills.items() if name in rows[0]})
            return batch | {"labels": torch.zeros(len(rows))}

        return collate


def _numbers(rows: Rows) -> dict[str, pa.ChunkedArray]:
    if "similarity" not in rows.others:
        return {}
    kind = rows.others["similarity"].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise MismatchError(f"{rows.where}: similarities hold {kind}; expected numbers.")
    found = rows.others["similarity"].cast(pa.float64())
    for i, value in enumerate(found.to_pylist()):
        if not math.isfinite(value):
            raise MismatchError(f"{rows.where}: row {i}: similarity {value} is no finite number. Correct or remove the row.")
    return {"similarity": found}
