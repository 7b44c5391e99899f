"""What pruning in one step has to know before it begins: batches of data, and how much of each mask is to go."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.class_names import labels_of
from hf_shrink.columns import LABELS
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import TokenizedSplits, tokenize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.lines import few
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import CRITERIA
from hf_shrink.pruning.oneshot import needs_data
from hf_shrink.pruning.sums import FROM_GRADIENTS, FROM_PRODUCTS
from hf_shrink.recipe import Recipe
from hf_shrink.samples import batches_of, plain
from hf_shrink.sensitivity import fractions_for
from hf_shrink.tasks import TASKS, task_of


def calibrated(
    entry: PruningConfig, model: PreTrainedModel, tokenizer: Any, recipe: Recipe | None, texts: Path | None, *, always: bool
) -> tuple[PruningConfig, list[dict[str, Tensor]] | None, dict[str, float] | None]:
    """``entry`` with what the recipe says of it (seed, widths for its bits), calibration batches, and each mask's fraction.

    Args:
        entry: what goes.
        model: of which; stays as it is.
        tokenizer: None where it has none.
        recipe: its training rows are the batches, its validation rows say what each part of the model is worth.
        texts: or a text file.
        always: batches also where ``entry`` reads none, so that whoever gave them is told.

    Raises:
        RecipeError: data is needed that is not there. MismatchError: the model is for another task, or has other classes.
    """
    shares = entry.allocation == "sensitivity"
    if recipe is not None:
        run = recipe.model_copy(update={"pruning": (entry,)})
        (entry,) = run.effective_pruning()
    elif shares:
        raise RecipeError("prune: allocation: sensitivity measures what each part is worth; add --recipe FILE to measure on.")
    reads = needs_data(entry) or (always and not shares)
    if (recipe is None and texts is None) or not (reads or shares):
        return entry, None, None
    if tokenizer is None:
        raise RecipeError("calibration: the model comes without a tokenizer to read texts with.")
    if recipe is None:
        return entry, plain(texts, tokenizer, model), None
    splits = load_splits(recipe.data, recipe.task, download=True)
    tokens = tokenize(splits, tokenizer, recipe.data.max_length)
    if shares or _learns(entry):
        tokens = _as_counted_by(model, recipe.task, tokens, splits.label_names)
    batches = batches_of(tokens.train, splits.format.collator(tokenizer)) if reads else None
    if batches is not None and not _reads_labels(entry) and not model.config.is_encoder_decoder:  # whose inputs are labels, too
        batches = [{name: value for name, value in batch.items() if name not in LABELS} for batch in batches]
    return entry, batches, fractions_for(run, model, tokens, tokenizer) if shares else None


def _reads_labels(entry: PruningConfig) -> bool:
    """Whether a score depends on labels; where none does the model may be of another task than the data, or have no head."""
    criterion = CRITERIA.get(entry.criterion)
    return _learns(entry) or (criterion is not None and "labels" in criterion.unit_needs)


def _learns(entry: PruningConfig) -> bool:
    """Whether a loss of the labels decides what goes."""
    criterion = CRITERIA.get(entry.criterion)
    return criterion is not None and bool({*criterion.needs, *criterion.unit_needs} & (FROM_GRADIENTS | FROM_PRODUCTS))


def _as_counted_by(model: Any, task: str, tokens: TokenizedSplits, names: Sequence[str]) -> TokenizedSplits:
    """Labels of ``names`` as ``model`` counts its classes, by their names: by place alone its answers would be wrong ones."""
    made_for, own = task_of(type(model).__name__), labels_of(model)
    if made_for is None or TASKS[made_for].classes != TASKS[task].classes:
        raise MismatchError(f"{type(model).__name__}: no model for task: {task}, so labels tell nothing; name one that is.")
    if not TASKS[task].labelled or own == list(names) or len(own) == len(names) == 1:
        return tokens
    if set(own) != set(names):
        raise MismatchError(
            f"{type(model).__name__} has {len(own)} labels {few(own)}; the data has {len(names)}: {few(names)}.\n"
            "Fine-tune it on these labels first, or set id2label in its config."
        )
    turn = _turned(names, own)
    train, validation = _mapped(tokens.train, turn), _mapped(tokens.validation, turn)
    return TokenizedSplits(train, validation, validation if tokens.test is tokens.validation else _mapped(tokens.test, turn))


def _turned(names: Sequence[str], own: Sequence[str]) -> Callable[[Any], Any]:
    """A class, one for each token, or 0 and 1 for each class: of ``names``, as one of ``own``."""

    def turn(label: Any) -> Any:
        if isinstance(label, int):
            return own.index(names[label]) if label >= 0 else label
        if all(isinstance(value, float) for value in label):
            return [label[names.index(name)] for name in own]
        return [turn(value) for value in label]

    return turn


def _mapped(rows: Dataset, turn: Callable[[Any], Any]) -> Dataset:
    return rows.remove_columns("labels").add_column("labels", [turn(label) for label in rows["labels"]])
