"""The model that a recipe's student starts from, as far as it has been trained already; nothing is trained or written here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.models.load import load_for
from hf_shrink.models.reference import shown
from hf_shrink.models.student import layers_left
from hf_shrink.pruning.entries import named
from hf_shrink.recipe import Recipe
from hf_shrink.tasks import TASKS
from hf_shrink.workspace import MANIFEST, STAGES

_LATER = {"version", "output_dir", "measurement", "publishing", "quantization"}
"""Sections that no trained student depends on."""
_TEACHER = {"task", "data", "seed", "teacher"}
"""Sections that the trained teacher depends on."""


def trained_start(
    recipe: Recipe,
    reference: str,
    revision: str | None,
    label_names: Sequence[str],
    calibration: Sequence[Mapping[str, Tensor]],
) -> tuple[PreTrainedModel, str]:
    """A model whose quality means something, and where it comes from: ``student``, ``teacher`` or ``reference``.

    The finished student of the recipe's run, where nothing is pruned from it; else what the student would start from: the
    run's finished teacher, or ``reference``; of those with the recipe's layers.

    Args:
        recipe: its ``output_dir`` is looked into.
        reference: of the weights that the student starts from, where the run has trained none.
        revision: of them.
        label_names: classes of the data.
        calibration: batches of training rows, for layers that are fitted to stand for others.

    Raises:
        MismatchError: no head for these classes has been trained yet.
        RecipeError: the teacher in the folder was trained by another recipe. IntegrityError: the manifest cannot be read.
    """
    folder = Path(recipe.output_dir)
    stages, before = _recorded(folder)
    changed = set() if before is None else {key.split(".")[0] for key in before.changed_keys(recipe)}
    if before is not None and "student" in stages and not (recipe.pruning or before.pruning or changed - _LATER):
        student = str(folder / STAGES / "student")
        return load_for(recipe.task, student, label_names=label_names, new_head=False), "student"
    if recipe.student.start == "scratch":
        raise MismatchError(
            "student.start: from scratch nothing has been learnt yet, so every loss would be chance.\n"
            "Run the recipe first: what it trains in output_dir is taken."
        )
    came_from = reference
    taught = recipe.student.start == "teacher" and bool(recipe.teachers) and recipe.teachers[0].training is not None
    if taught and "teacher" in stages:
        if other := sorted(changed & _TEACHER):
            raise RecipeError(
                f"output_dir {folder.name!r}: its teacher was trained by another recipe ({', '.join(other)} differs).\n"
                "Choose another output_dir, or take the change back."
            )
        reference, revision, came_from = str(folder / STAGES / "teacher"), None, "teacher"
    try:
        model = load_for(recipe.task, reference, label_names=label_names, revision=revision, new_head=False)
    except MismatchError as error:
        raise MismatchError(
            f"{str(error).splitlines()[0]}\n"
            "Its quality on this data would be chance, and so would every loss. Run the recipe first: what it trains in "
            "output_dir is taken."
        ) from error
    return layers_left(model, recipe.student, calibration), came_from


def refuse_unlearnt(recipe: Recipe, start: PreTrainedModel) -> None:
    """A ``MismatchError`` where a budget would be spent by what parts are worth to a model that knows nothing yet.

    Args:
        recipe: its ``pruning`` entries.
        start: what the student starts from, on meta, with the ``architectures`` of its checkpoint.
    """
    shared = (place for place, entry in named(recipe.pruning) if entry.allocation == "sensitivity" and entry.sparsity)
    if (place := next(shared, None)) is None or recipe.student.start == "teacher":
        return
    made_for = start.config.architectures or []
    if recipe.student.start == "scratch":
        why = "from scratch nothing has been learnt yet"
    elif TASKS[recipe.task].new_head and made_for and type(start).__name__ not in made_for:
        why = f"{shown(recipe.model)} is a {made_for[0]}, its head for {recipe.task} is new and knows nothing"
    else:
        return
    raise MismatchError(
        f"{place}.allocation: sensitivity: {why}, so nothing says what its parts are worth.\n"
        "Start from a trained model (student.start: teacher), or use allocation: uniform."
    )


def _recorded(folder: Path) -> tuple[set[str], Recipe | None]:
    """The finished stages of a run, and its recipe; nothing where there is no run."""
    path = folder / MANIFEST
    if not path.is_file():
        return set(), None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe.from_record(manifest["recipe"])
        done = {stage for stage in manifest["stages"] if (folder / STAGES / stage / "config.json").is_file()}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(
            f"{folder.name}/{MANIFEST}: no manifest of this version. Run the recipe again with --overwrite, or name another "
            "output_dir."
        ) from None
    return done, recipe
