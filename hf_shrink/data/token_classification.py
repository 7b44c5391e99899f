"""One tag for each word, such as the names of people and places in a sentence."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from hf_shrink.data.format import Collator, Columned, Format
from hf_shrink.data.hub import quiet_bars
from hf_shrink.data.label_lists import encode_lists
from hf_shrink.data.rows import Columns, Rows
from hf_shrink.errors import MismatchError
from hf_shrink.lines import few, first_line

IGNORED = -100


class TagFormat(Format):
    """``tokens``, words, and ``tags``, as many indices into the names of the tags.

    The tag of a word is the label of its first token; its other tokens, special tokens and padding are -100. What exceeds
    ``max_length`` is cut off: words beyond are neither learnt nor judged.
    """

    unit = "sentences"

    def columns(self) -> Columns:
        """As the section names them."""
        return Columns({}, {"tokens": self.config.tokens_column, "tags": self.config.tags_column})

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """The names are the source's own, else the sorted names in training, else ``LABEL_0`` ... for numbers from 0."""
        words = [_words(rows) for rows in splits]
        names, indices = encode_lists(splits, "tags")
        for rows, own, tags in zip(splits, words, indices, strict=True):
            _check_lengths(rows.where, own, tags)
        return names, [
            {"tokens": pa.array(w, pa.list_(pa.string())), "tags": pa.array(t, pa.list_(pa.int64()))}
            for w, t in zip(words, indices, strict=True)
        ]

    def tokens(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
        """One row a sentence, cut to ``max_length``."""
        if not tokenizer.is_fast:
            raise MismatchError("tokenizer: it cannot say which token is of which word. Use a model with tokenizer.json.")

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            try:
                found = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
            except (AssertionError, ValueError) as error:  # byte-level ones want add_prefix_space
                raise MismatchError(f"tokenizer: it cannot read single words: {first_line(error)}") from None
            labels = [_first_tokens(found.word_ids(i), tags) for i, tags in enumerate(batch["tags"])]
            return {**found, "labels": labels}

        with quiet_bars():
            tokens = data.map(
                encode,
                batched=True,
                remove_columns=data.column_names,
                keep_in_memory=True,
                load_from_cache_file=False,
                desc=f"tokenising {role}",
            )
        for i, labels in enumerate(tokens["labels"]):
            if all(label == IGNORED for label in labels):
                raise MismatchError(f"{role} row {i}: none of its words {few(data[i]['tokens'])} has a token. Remove the row.")
        return tokens

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads tokens and labels."""
        collator: Collator = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)
        return collator


def _words(rows: Rows) -> list[list[str]]:
    found: list[Any] = rows.others["tokens"].to_pylist()
    for i, words in enumerate(found):
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise MismatchError(f"{rows.where}: row {i}: tokens hold {repr(words)[:60]}, not a list of words. Correct the row.")
    return found


def _check_lengths(where: str, words: list[list[str]], tags: list[list[int]]) -> None:
    for i, (own, named) in enumerate(zip(words, tags, strict=True)):
        if len(own) != len(named):
            raise MismatchError(f"{where}: row {i}: {len(named)} tags for {len(own)} words. Correct or remove the row.")


def _first_tokens(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The tag where a word begins, -100 elsewhere."""
    before = [None, *words[:-1]]
    return [tags[w] if w is not None and w != b else IGNORED for w, b in zip(words, before, strict=True)]
