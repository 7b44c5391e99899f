"""Measure or compare models that need not come from a run."""

from collections.abc import Sequence
from pathlib import Path

from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.measure import measure, measure_all
from hf_shrink.measurement.reports import NAME
from hf_shrink.measurement.subjects import Subject
from hf_shrink.models.load import load_tokenizer
from hf_shrink.models.reference import local_folder
from hf_shrink.recipe import Recipe


def measure_model(reference: str, recipe: Recipe | None) -> Comparison:
    """One column: size, compute, memory and speed; quality too where a recipe names the data.

    Raises:
        ShrinkError: the model is not on this machine, cannot be loaded, or does not fit the data.
    """
    folder = local_folder(reference)
    if recipe is None:
        return compare([measure(folder)])
    tokenizer = load_tokenizer(reference)
    tokens = tokenize(load_splits(recipe.data), tokenizer, recipe.data.max_length)
    return compare([measure(folder, dataset=tokens.test, tokenizer=tokenizer, config=recipe.measurement)])


def compare_models(references: Sequence[str]) -> Comparison:
    """One run: all its stages. Several runs: what their reports say of their last stages. Others are measured now, in turns.

    Raises:
        ShrinkError: as ``measure_model``.
    """
    folders = [local_folder(reference) for reference in references]
    if all((folder / NAME).is_file() for folder in folders):
        return compare(folders)
    return compare(measure_all([Subject(name, folder=folder) for name, folder in zip(_names(folders), folders, strict=True)]))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, numbered where two are the same."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]
