"""From texts to token ids."""

from dataclasses import dataclass

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_shrink.data.hub import quiet_bars
from hf_shrink.data.splits import Splits
from hf_shrink.errors import MismatchError


@dataclass(frozen=True)
class TokenizedSplits:
    """Columns ``input_ids``, ``attention_mask``, for some tokenizers ``token_type_ids``, and ``labels``; lengths are ragged."""

    train: Dataset
    validation: Dataset
    test: Dataset


def tokenize(splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSplits:
    """Every row as tokens, in order, in memory.

    Args:
        max_length: tokens that a row is cut to, special tokens included; of a pair the longer text is cut first.

    Raises:
        MismatchError: the tokenizer's model takes fewer tokens, or a text has none at all.
    """
    if max_length > tokenizer.model_max_length:
        most = tokenizer.model_max_length
        raise MismatchError(f"data.max_length: {max_length} tokens, but the model takes at most {most}; lower max_length.")
    train = tokenize_rows(splits.train, tokenizer, max_length, "train")
    validation = tokenize_rows(splits.validation, tokenizer, max_length, "validation")
    test = validation if splits.test is splits.validation else tokenize_rows(splits.test, tokenizer, max_length, "test")
    return TokenizedSplits(train, validation, test)


def tokenize_rows(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, role: str) -> Dataset:
    """The rows of one split, as in ``tokenize``; ``role`` names it in errors."""

    def encode(batch: dict[str, list[str]]) -> BatchEncoding:
        tokens: BatchEncoding = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        return tokens

    texts = [column for column in data.column_names if column != "label"]
    with quiet_bars():
        tokens = data.map(
            encode,
            batched=True,
            remove_columns=texts,
            keep_in_memory=True,
            load_from_cache_file=False,
            desc=f"tokenising {role}",
        )
    empty = next((i for i, ids in enumerate(tokens["input_ids"]) if not ids), None)
    if empty is not None:
        raise MismatchError(f"{role} row {empty}: the text {data[empty]['text'][:40]!r} has no token. Remove the row.")
    return tokens.rename_column("label", "labels")
