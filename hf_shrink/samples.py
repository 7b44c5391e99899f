"""Batches for what is measured in one step: the training rows of a recipe, or the lines of a text file."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.data.format import Collator
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.families import longest
from hf_shrink.models.load import load_tokenizer
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.recipe import Recipe

ROWS, BATCH, LENGTH = 512, 32, 512
TOKENS = 65_536
"""Of long rows fewer are taken: as many as 512 rows of 128 tokens hold, and a batch as many as 32 of those."""


def samples_of(
    config: QuantizationConfig, recipe: Recipe | None, texts: Path | None, tokenizer: Any, model: PreTrainedModel
) -> list[dict[str, Tensor]]:
    """Batches that ``bits: auto`` measures on: from a recipe's training rows, or from a text file.

    Raises:
        RecipeError: neither is given, or there is no tokenizer to read them with.
    """
    if recipe is None and texts is None:
        raise RecipeError(
            "quantize: bits: auto measures what each layer loses; add --recipe FILE or --texts FILE to measure on."
        )
    if tokenizer is None:
        raise RecipeError("calibration: the model comes without a tokenizer to read texts with.")
    rows = config.calibration_rows
    return labelled(recipe, tokenizer, rows) if recipe is not None else plain(texts, tokenizer, model, rows)


def tokenizer_of(reference: str, revision: str | None) -> Any:
    """The tokenizer of a model, or None where it has none."""
    try:
        return load_tokenizer(reference, revision=revision)
    except ResourceError:
        return None  # images, or weights alone


def labelled(recipe: Recipe, tokenizer: Any, most: int = ROWS) -> list[dict[str, Tensor]]:
    """Batches of the first training rows of a recipe, with labels."""
    splits = load_splits(recipe.data, recipe.task, download=True)
    return batches_of(tokenize(splits, tokenizer, recipe.data.max_length).train, splits.format.collator(tokenizer), most)


def batches_of(data: Dataset, pad: Collator, rows: int = ROWS, *, last: bool = False) -> list[dict[str, Tensor]]:
    """The first rows of a tokenised split in batches, at most ``rows`` of them; or the last."""
    most = max(1, TOKENS // max(map(len, data[:ROWS]["input_ids"])))
    count, size = min(rows, ROWS, most, len(data)), min(BATCH, max(1, most * BATCH // ROWS))
    chosen = range(len(data) - count, len(data)) if last else range(count)
    return [dict(pad([data[i] for i in chosen[start : start + size]])) for start in range(0, count, size)]


def plain(texts: Path | None, tokenizer: Any, model: Any, most: int = ROWS) -> list[dict[str, Tensor]]:
    """Batches of the lines of a text file."""
    assert texts is not None
    try:
        lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()][:most]
    except FileNotFoundError:
        raise RecipeError(f"{texts.name}: no such file; name a text file, a sample a line.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{texts.name}: not UTF-8 text; name a text file, a sample a line.") from None
    if not lines:
        raise RecipeError(f"{texts.name}: no line of text in it.")
    found, words = [], {"padding": True, "truncation": True, "max_length": min(LENGTH, longest(model) or LENGTH)}
    for part in _parts(len(lines)):
        batch = dict(tokenizer([lines[i] for i in part], **words, return_tensors="pt"))
        if model.get_output_embeddings() is not None:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        found.append(batch)
    return found


def _parts(count: int) -> Iterable[Sequence[int]]:
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
