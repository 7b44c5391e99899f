"""Whole texts, or pairs of them, as token ids."""

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_shrink.data.hub import quiet_bars
from hf_shrink.errors import MismatchError


def text_tokens(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
    """``text`` and, for pairs, ``text_pair`` replaced by what the tokenizer makes of them; other columns stay.

    Args:
        data: rows in order.
        tokenizer: adds its special tokens.
        max_length: tokens that a row is cut to, special tokens included; of a pair the longer text is cut first.
        role: names the split in errors.

    Raises:
        MismatchError: a text has no token.
    """

    def encode(batch: dict[str, list[str]]) -> BatchEncoding:
        tokens: BatchEncoding = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        return tokens

    with quiet_bars():
        tokens = data.map(
            encode,
            batched=True,
            remove_columns=[column for column in data.column_names if column in ("text", "text_pair")],
            keep_in_memory=True,
            load_from_cache_file=False,
            desc=f"tokenising {role}",
        )
    empty = next((i for i, ids in enumerate(tokens["input_ids"]) if not ids), None)
    if empty is not None:
        raise MismatchError(f"{role} row {empty}: the text {data[empty]['text'][:40]!r} has no token. Remove the row.")
    return tokens
