"""Running text for models that tell which tokens were hidden from them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from hf_shrink.data.causal_lm import IGNORED, pack, padded
from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.text_classification import strings
from hf_shrink.errors import MismatchError

_ONCE = -1
"""The epoch of rows that are no training's."""


class MaskedTokenFormat(Format):
    """``text``; ``mask_probability`` of its tokens, never the special ones, are to be told, at least one of each row.

    Of those, 80 % are replaced by the mask token, 10 % by any token and 10 % stay (arXiv:1810.04805, section 3.1). Training
    rows are masked by the collator, anew in each epoch; those of validation and test were masked once, by the section's seed,
    so that every model is asked the same. What is hidden follows from seed, epoch and the row itself: order, batch, padding and
    a stop in between do not matter.

    Packed, texts follow each other in order with a separator between, cut into rows of ``max_length`` tokens, each framed as
    the tokenizer frames a text; not packed, each text is one row and what exceeds ``max_length`` is cut off.
    """

    unit = "blocks"

    def columns(self) -> Columns:
        """The column of texts."""
        return Columns({"text": self.config.text_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """No classes."""
        return (), [strings(rows) for rows in splits]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """Blocks, or one row a text; with ``labels`` where they are not for training."""
        masking = self._masking(tokenizer)
        frame = _Frame.of(tokenizer)
        room = max_length - len(frame.before) - len(frame.after)
        if room < 1:
            raise MismatchError(f"data.max_length: {max_length} tokens leave no room beside the special ones; raise it.")
        found = _documents(data, tokenizer, role)
        if self.config.packing:
            end = _separator(tokenizer)
            blocks: Iterator[list[int]] = (_stripped(ids, end) for ids, _ in pack(found, room, end))
        else:
            blocks = (ids[:room] for ids, _ in found)
        rows = [frame.around(ids) for ids in blocks if not set(masking.special).issuperset(ids)]
        if not rows:
            raise MismatchError(f"{role}: 0 tokens to hide in {len(data)} rows. Give texts that the tokenizer knows.")
        if role == "train":
            return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]})
        return Dataset.from_list([masking.asked(ids, self.config.seed, _ONCE) for ids in rows])

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Masks rows without labels, and pads; ``set_epoch`` says which epoch it is of which training."""
        return self._masking(tokenizer)

    def _masking(self, tokenizer: PreTrainedTokenizerBase) -> "_Masking":
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise MismatchError(
                "tokenizer: it has no mask token and padding token, so nothing can be hidden from the model.\n"
                "Use a model that was trained on hidden tokens, such as BERT, or task: causal-lm."
            )
        stock = DataCollatorForLanguageModeling(tokenizer, mlm_probability=self.config.mask_probability)
        stock.generator = torch.Generator()
        return _Masking(stock, tokenizer.mask_token_id, tokenizer.pad_token_id, tuple(tokenizer.all_special_ids))


@dataclass(frozen=True)
class _Masking:
    """The stock masking of one row at a time, which may hide nothing of a short text: then one token of it is hidden.

    Attributes:
        drawn: seed and epoch, in memory that the workers of a data loader share.
    """

    stock: Any
    mask: int
    pad: int
    special: tuple[int, ...]
    drawn: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64).share_memory_())  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Let the rows of the batches to come be masked as in this epoch of a training with this seed."""
        self.drawn.copy_(torch.tensor([seed, epoch]))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "labels" not in rows[0]:
            seed, epoch = self.drawn.tolist()
            rows = [self.asked(row["input_ids"], seed, epoch) for row in rows]
        return padded(rows, fills={"input_ids": self.pad, "attention_mask": 0, "labels": IGNORED})

    def asked(self, ids: list[int], seed: int, epoch: int) -> dict[str, list[int]]:
        """One row with some of its tokens hidden, the same for the same three arguments."""
        key = json.dumps([seed, epoch, ids]).encode()
        draw = self.stock.generator.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1)
        whole = torch.tensor([ids])
        fixed = torch.isin(whole, torch.tensor(self.special))
        hidden, labels = self.stock.torch_mask_tokens(whole.clone(), special_tokens_mask=fixed)
        if not bool((labels != IGNORED).any()):
            words = (~fixed[0]).nonzero().flatten()
            place = words[torch.randint(len(words), (1,), generator=draw)]
            labels[0, place] = whole[0, place]
            hidden[0, place] = self.mask
        return {"input_ids": hidden[0].tolist(), "attention_mask": [1] * len(ids), "labels": labels[0].tolist()}


@dataclass(frozen=True)
class _Frame:
    """The special tokens that a tokenizer puts around one text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "_Frame":
        probe = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        framed = list(tokenizer("a")["input_ids"])
        at = next(i for i in range(len(framed)) if framed[i : i + len(probe)] == probe)
        return cls(tuple(framed[:at]), tuple(framed[at + len(probe) :]))

    def around(self, ids: list[int]) -> list[int]:
        return [*self.before, *ids, *self.after]


def _documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, role: str) -> Iterator[tuple[list[int], list[int]]]:
    for i, text in enumerate(data["text"]):
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise MismatchError(f"{role} row {i}: the text {text[:40]!r} has no token. Remove the row.")
        yield ids, ids


def _separator(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise MismatchError(
        "tokenizer: no separator token, so nothing would stand between one text and the next.\nSet data.packing: false."
    )


def _stripped(ids: list[int], end: int) -> list[int]:
    """Without the separator at its ends: the frame brings its own."""
    first = 1 if ids[0] == end else 0
    return ids[first:-1] if len(ids) > first and ids[-1] == end else ids[first:]
