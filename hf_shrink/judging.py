"""Measure or compare models that need not come from a run."""

from collections.abc import Sequence
from pathlib import Path

from hf_shrink.answers import by_name, order_by_name
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.disturbed import rewritten
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.floor import FLOOR_TITLE, floor
from hf_shrink.measurement.measure import check_alone, measure, measure_all
from hf_shrink.measurement.reports import NAME
from hf_shrink.measurement.subjects import Subject
from hf_shrink.models.load import load_tokenizer
from hf_shrink.models.reference import local_folder
from hf_shrink.recipe import Recipe


def measure_model(reference: str, recipe: Recipe | None) -> Comparison:
    """One column: size, compute, memory and speed; quality too where a recipe names the data. Downloads nothing.

    The floor that the recipe asks for stands beside it.

    Raises:
        RecipeError: the recipe asks for energy or attributions, which one model alone cannot give.
        ShrinkError: model or data are not on this machine, cannot be loaded, or do not fit each other.
    """
    folder = local_folder(reference)
    if recipe is None:
        return compare([measure(folder)])
    check_alone(recipe.measurement)
    tokenizer = load_tokenizer(reference, download=False)
    splits = load_splits(recipe.data, recipe.task, download=False)
    test = tokenize(splits, tokenizer, recipe.data.max_length).test
    answers = by_name(folder, splits.label_names, test, tokenizer, batch_size=max(recipe.measurement.batch_sizes))
    order = order_by_name(folder, splits.label_names)
    subject = Subject(folder.resolve().name, folder=folder, predictions=answers, order=order)
    subjects = [subject]
    if (plain := recipe.measurement.floor) is not None:
        subjects.append(Subject("floor", FLOOR_TITLE, predictions=floor(plain, splits.train, splits.test)))
    texts = rewritten(recipe, splits)
    return compare(measure_all(subjects, dataset=test, tokenizer=tokenizer, config=recipe.measurement, rewritten=texts))


def compare_models(references: Sequence[str]) -> Comparison:
    """One run: all its stages. Several runs: what their reports say of the models they hold. Others are measured now, in turns.

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
