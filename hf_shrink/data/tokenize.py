"""From rows to token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.splits import Splits
from hf_shrink.errors import MismatchError


@dataclass(frozen=True)
class TokenizedSplits:
    """Columns ``input_ids``, ``attention_mask``, for some tokenizers ``token_type_ids``, and ``labels``; lengths are ragged."""

    train: Dataset
    validation: Dataset
    test: Dataset


def tokenize(splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSplits:
    """Every row as tokens, in order, in memory, as the format of the task says.

    Args:
        max_length: tokens that a row has at most, special tokens included.

    Raises:
        MismatchError: the tokenizer's model takes fewer tokens, or a text has none at all.
    """
    if max_length > tokenizer.model_max_length:
        most = tokenizer.model_max_length
        raise MismatchError(f"data.max_length: {max_length} tokens, but the model takes at most {most}; lower max_length.")
    of = splits.format.tokens
    train = of(splits.train, tokenizer, max_length, "train")
    validation = of(splits.validation, tokenizer, max_length, "validation")
    test = validation if splits.test is splits.validation else of(splits.test, tokenizer, max_length, "test")
    return TokenizedSplits(train, validation, test)


def check_fit(tokens: TokenizedSplits, vocabulary: int | None, positions: int | None, who: str = "the model") -> None:
    """Raise MismatchError where a token id or a row's length is beyond what the model has; None leaves a check out.

    A model would stop with an index error in the middle of training, or, where positions are computed, just be bad.
    """
    for role, rows in (("train", tokens.train), ("validation", tokens.validation), ("test", tokens.test)):
        check_rows(rows["input_ids"], vocabulary, positions, role, who)


def check_rows(rows: Sequence[list[int]], vocabulary: int | None, positions: int | None, role: str, who: str) -> None:
    """As ``check_fit``, for the token ids of one split."""
    for i, ids in enumerate(rows):
        if vocabulary is not None and max(ids) >= vocabulary:
            raise MismatchError(
                f"{role} row {i}: token id {max(ids)}, but {who}'s vocabulary has {vocabulary} entries.\n"
                "Use the model's own tokenizer."
            )
        if positions is not None and len(ids) > positions:
            raise MismatchError(
                f"{role} row {i}: {len(ids)} tokens, but {who} takes at most {positions}; lower data.max_length."
            )
