"""Texts that become other texts: translations, summaries, corrections."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.causal_lm import IGNORED, padded
from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.text_classification import strings
from hf_shrink.data.texts import text_tokens
from hf_shrink.errors import MismatchError


class TargetFormat(Format):
    """``text``, behind ``prefix``, and ``target``; labels are the target's tokens, at most ``max_target_length`` of them.

    A model's loss moves them by one behind its own start token. Rows for judging also carry the target's text.
    """

    def columns(self) -> Columns:
        """As the section names them."""
        return Columns({"text": self.config.text_column, "target": self.config.target_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """No classes."""
        return (), [strings(rows) for rows in splits]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """One row a text, both sides cut."""
        targets: list[str] = data["target"][:]
        empty = next((i for i, target in enumerate(targets) if not target.strip()), None)
        if empty is not None:
            raise MismatchError(f"{role} row {empty}: the target is empty. Remove the row.")
        texts = Dataset.from_dict({"text": [self.config.prefix + text for text in data["text"]]})
        tokens = text_tokens(texts, tokenizer, max_length, role)
        length = self.config.max_target_length
        labels = [list(tokenizer(text_target=target, truncation=True, max_length=length)["input_ids"]) for target in targets]
        tokens = tokens.remove_columns([name for name in tokens.column_names if name == "token_type_ids"])
        tokens = tokens.add_column("labels", labels)
        return tokens if role == "train" else tokens.add_column("target", targets)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads both sides behind their end."""
        fill = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0  # never seen: the mask is 0 there

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            length = max(len(row["labels"]) for row in rows)
            labels = [[*row["labels"], *[IGNORED] * (length - len(row["labels"]))] for row in rows]
            return padded(rows, fills={"input_ids": fill, "attention_mask": 0}) | {"labels": torch.tensor(labels)}

        return collate
