"""One class for each text, or pair of texts."""

from collections.abc import Sequence

import pyarrow as pa
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.labels import encode
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.texts import text_tokens


class ClassFormat(Format):
    """``text``, for pairs ``text_pair``, and ``label``, an index into the names of the classes."""

    def columns(self) -> Columns:
        """As the section names them."""
        pair = {"text_pair": self.config.text_pair_column} if self.config.text_pair_column else {}
        return Columns({"text": self.config.text_column, **pair}, {"label": self.config.label_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """Classes by the rules of ``labels.encode``."""
        names, indices = encode(splits[0], list(splits[1:]))
        pairs = zip(splits, indices, strict=True)
        return names, [{**strings(rows), "label": pa.array(labels)} for rows, labels in pairs]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """One row a text, cut to ``max_length``."""
        return text_tokens(data, tokenizer, max_length, role).rename_column("label", "labels")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads what the tokenizer made."""
        collator: Collator = DataCollatorWithPadding(tokenizer)
        return collator


def strings(rows: Rows) -> dict[str, pa.ChunkedArray]:
    """The texts, all of one type of string whatever the source had."""
    return {name: column.cast(pa.string()) for name, column in rows.texts.items()}
