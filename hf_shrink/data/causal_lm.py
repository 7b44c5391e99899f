"""Running text, or chats, for models that predict the next token."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.chats import chat_tokens, check_chats, marks_assistant
from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.data.text_classification import strings
from hf_shrink.errors import MismatchError

IGNORED = -100

Document = tuple[list[int], list[int]]
"""Token ids and labels of one text, of equal length."""


class NextTokenFormat(Format):
    """``text``, or ``messages``; labels are the tokens themselves, which the model's loss moves by one.

    Packed, the texts of a split follow each other in order, each closed by the end-of-text token, and every ``max_length``
    tokens make a block; tokens see those of the text before. What is left at the end is a shorter block. Not packed, each
    text is one row, and what exceeds ``max_length`` is cut off. Rows without a token to predict are left out.
    """

    unit = "blocks"

    def columns(self) -> Columns:
        """The column of texts or the column of chats."""
        if self.config.messages_column is not None:
            return Columns({}, {"messages": self.config.messages_column})
        return Columns({"text": self.config.text_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """No classes; chats are looked through."""
        if self.config.messages_column is None:
            return (), [strings(rows) for rows in splits]
        for rows in splits:
            check_chats(rows)
        return (), [dict(rows.others) for rows in splits]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """Blocks, or one row a text."""
        end, chats = end_of_text(tokenizer), self.config.messages_column is not None
        only_assistant = chats and self.config.loss_on == "assistant" and marks_assistant(tokenizer)
        found = documents(data, tokenizer, role, chats=chats, only_assistant=only_assistant)
        rows = pack(found, max_length, end) if self.config.packing else unpacked(found, end, max_length)
        kept = [(ids, labels) for ids, labels in rows if any(label != IGNORED for label in labels[1:])]
        if not kept:
            raise MismatchError(f"{role}: 0 tokens to predict in {len(data)} rows. Give longer texts, or loss_on: all.")
        return Dataset.from_dict(
            {
                "input_ids": [ids for ids, _ in kept],
                "attention_mask": [[1] * len(ids) for ids, _ in kept],
                "labels": [labels for _, labels in kept],
            }
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads behind the end, whatever the tokenizer's own side: positions are counted from the first token.

        A real end-of-text token keeps its label even where it also is the padding token.
        """
        fill = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0  # never seen: the mask is 0 there
        return partial(padded, fills={"input_ids": fill, "attention_mask": 0, "labels": IGNORED})

    def notes(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Where ``loss_on: assistant`` cannot be had."""
        if self.config.loss_on == "all" or marks_assistant(tokenizer):
            return ()
        return ("data.loss_on: the chat template does not mark what the assistant says, so all tokens of a chat are learnt",)


def documents(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, role: str, *, chats: bool, only_assistant: bool
) -> Iterator[Document]:
    """Token ids and labels of each row, in order.

    Args:
        data: ``text``, or with ``chats`` ``messages``.
        tokenizer: what it puts around a text stays.
        role: names the split in errors.
        chats: whether rows are chats.
        only_assistant: of chats, label only what the assistant says.

    Raises:
        MismatchError: a row without a token, or a chat that the template refuses.
    """
    if chats:
        yield from chat_tokens(data["messages"], tokenizer, role, only_assistant=only_assistant)
        return
    for i, text in enumerate(data["text"]):
        # A long text is no mistake here: verbose=False keeps the tokenizer from warning about its length.
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        if not text.strip() or not ids:
            raise MismatchError(f"{role} row {i}: the text {text[:40]!r} has no token. Remove the row.")
        yield ids, list(ids)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-text token; a MismatchError where there is none."""
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise MismatchError(
            "tokenizer: no end-of-text token, so nothing would separate one text from the next.\n"
            "Set eos_token in the tokenizer's config."
        )
    return end


def unpacked(found: Iterator[Document], end: int, length: int | None) -> Iterator[Document]:
    """Each document by itself, closed by ``end`` and cut to ``length`` tokens; None leaves it whole."""
    for document in found:
        ids, labels = _closed(document, end)
        yield ids[:length], labels[:length]


def pack(documents: Iterator[Document], length: int, end: int) -> Iterator[Document]:
    """Blocks of ``length`` tokens from documents in order, each closed by ``end``; a shorter block last, if any is left.

    Args:
        documents: token ids with labels.
        length: of a block, in tokens.
        end: id of the end-of-text token.
    """
    ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        more, wanted = _closed(document, end)
        ids += more
        labels += wanted
        whole = len(ids) - len(ids) % length
        for start in range(0, whole, length):
            yield ids[start : start + length], labels[start : start + length]
        ids, labels = ids[whole:], labels[whole:]
    if ids:
        yield ids, labels


def padded(rows: list[dict[str, Any]], *, fills: Mapping[str, int]) -> dict[str, Tensor]:
    """The named columns, each row filled up behind its end to the longest ``input_ids``, ``[rows, length]``."""
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([[*row[name], *[fill] * (length - len(row[name]))] for row in rows]) for name, fill in fills.items()
    }


def _closed(document: Document, end: int) -> Document:
    """With the end-of-text token, which is learnt where the last token is."""
    ids, labels = document
    if ids[-1] == end:
        return document
    return [*ids, end], [*labels, end if labels[-1] != IGNORED else IGNORED]
