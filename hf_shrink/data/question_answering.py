"""A question about a text, answered by a piece of the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.text_classification import strings
from hf_shrink.errors import MismatchError

OUTSIDE = [-1, -1]
"""Where a token is none of the context's."""
_FILLS = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0}


class SpanFormat(Format):
    """``question``, ``context`` and ``answers``, as SQuAD has them: ``{text: [...], answer_start: [...]}``, at least one.

    A context that does not fit beside its question is read in windows of ``max_length`` tokens; two that follow each other
    share ``doc_stride`` of them. A window learns the tokens at which the first answer begins and ends; one that does not hold
    it whole learns its first token twice. Rows for judging also carry what the answer's text is made from.
    """

    unit = "windows"

    def columns(self) -> Columns:
        """As the section names them."""
        texts = {"question": self.config.question_column, "context": self.config.context_column}
        return Columns(texts, {"answers": self.config.answers_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """No classes; every answer stands where it is said to."""
        found: list[Columned] = []
        for rows in splits:
            answers = _answers(rows)
            found.append(
                {
                    **strings(rows),
                    "answer_texts": pa.array([texts for texts, _ in answers], pa.list_(pa.string())),
                    "answer_starts": pa.array([starts for _, starts in answers], pa.list_(pa.int64())),
                }
            )
        return (), found

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """One row a window, in order."""
        if not tokenizer.is_fast:
            raise MismatchError("tokenizer: it cannot say where a token stands in the text. Use a model with tokenizer.json.")
        if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
            raise MismatchError("tokenizer: windows are padded behind their end; set padding_side: right and a padding token.")
        found: dict[str, list[Any]] = {}
        for i, row in enumerate(data):
            for window in self._windows(tokenizer, row, max_length, f"{role} row {i}"):
                columns: dict[str, Any] = dict(window.inputs)
                columns["start_positions"], columns["end_positions"] = window.span(row)
                if role != "train":
                    told = {"context": row["context"], "answer_texts": row["answer_texts"]}
                    columns |= {"example": i, "offsets": window.offsets, **told}
                for name, value in columns.items():
                    found.setdefault(name, []).append(value)
        return Dataset.from_dict(found)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads tokens behind their end; both places stay as they are, and columns for judging are left out."""
        pad = tokenizer.pad_token_id

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            length = max(len(row["input_ids"]) for row in rows)
            batch = {
                name: torch.tensor([[*row[name], *[pad if fill is None else fill] * (length - len(row[name]))] for row in rows])
                for name, fill in _FILLS.items()
                if name in rows[0]
            }
            places = ("start_positions", "end_positions")
            return batch | {name: torch.tensor([row[name] for row in rows]) for name in places if name in rows[0]}

        return collate

    def _windows(
        self, tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], max_length: int, where: str
    ) -> list["_Window"]:
        asked = len(tokenizer(row["question"], add_special_tokens=False)["input_ids"])
        room = max_length - asked - tokenizer.num_special_tokens_to_add(pair=True)
        if room <= self.config.doc_stride:
            raise MismatchError(
                f"{where}: {max_length} tokens leave {max(room, 0)} for the context beside a question of {asked}; windows "
                f"that share {self.config.doc_stride} (data.doc_stride) need more.\nRaise max_length or lower doc_stride."
            )
        encoded = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=max_length,
            stride=self.config.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in encoded if name in tokenizer.model_input_names]
        found = []
        for k, places in enumerate(encoded["offset_mapping"]):
            own = encoded.sequence_ids(k)
            offsets = [list(place) if side == 1 else OUTSIDE for place, side in zip(places, own, strict=True)]
            if all(place == OUTSIDE for place in offsets):
                raise MismatchError(f"{where}: the context {row['context'][:40]!r} has no token. Remove the row.")
            found.append(_Window({name: encoded[name][k] for name in names}, offsets))
        return found


@dataclass(frozen=True)
class _Window:
    """Model inputs, and for each token where it begins and ends in the context, in characters."""

    inputs: Mapping[str, list[int]]
    offsets: list[list[int]]

    def span(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """The tokens at which the first answer begins and ends, or twice the first token where it is not whole in here."""
        begin = row["answer_starts"][0]
        end = begin + len(row["answer_texts"][0])
        inside = [i for i, place in enumerate(self.offsets) if place != OUTSIDE]
        if self.offsets[inside[0]][0] > begin or self.offsets[inside[-1]][1] < end:
            return 0, 0
        first = max(i for i in inside if self.offsets[i][0] <= begin)
        last = min(i for i in inside if self.offsets[i][1] >= end)
        return first, max(first, last)


def _answers(rows: Rows) -> list[tuple[list[str], list[int]]]:
    """Texts and places of each row's answers."""
    found = []
    contexts = rows.texts["context"].to_pylist()
    for i, value in enumerate(rows.others["answers"].to_pylist()):
        texts, starts = (value.get(key) if isinstance(value, dict) else None for key in ("text", "answer_start"))
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise MismatchError(
                f"{rows.where}: row {i}: answers hold {repr(value)[:60]}; give {{text: [...], answer_start: [...]}}."
            )
        if not texts:
            raise MismatchError(
                f"{rows.where}: row {i}: no answer; questions that the text does not answer are not supported. Remove the row."
            )
        for text, start in zip(texts, starts, strict=True):
            whole = isinstance(text, str) and text.strip() and isinstance(start, int) and start >= 0
            if not whole or contexts[i][start : start + len(text)] != text:
                raise MismatchError(
                    f"{rows.where}: row {i}: the answer {repr(text)[:40]} is not in the context at {start}. Correct the row."
                )
        found.append((texts, starts))
    return found
