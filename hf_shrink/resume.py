"""Whether a folder may be run in: new, the same recipe again, or a changed one that the user accepts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.publishing.private import DESTINATION
from hf_shrink.recipe import Recipe
from hf_shrink.sources import refuse_own_sources
from hf_shrink.tables import nearest
from hf_shrink.workspace import ORDER, Workspace

_FIRST_STAGE = {
    "task": "teacher",
    "data": "teacher",
    "seed": "teacher",
    "teacher": "teacher",
    "quantization": "quantized",
    "recovery": "recovered",
    "measurement": "measured",
    "gate": "report",
    "publishing": "report",
    "version": "report",
}
"""The first stage that a section of the recipe reaches; sections that are not here reach the student."""

_FREE = "gate"
"""The section that judges what is there already: to change it needs nobody's leave."""

_PLACES = {"output_dir", "cache.folder", *(f"publishing.{key}" for key in DESTINATION)}
"""Keys that say where things are: a folder may be moved, and a finished run published."""


def open_folder(recipe: Recipe, *, overwrite: bool, accept_changes: Sequence[str]) -> Workspace:
    """The folder of a recipe, claimed for this run; stages that accepted changes reach are to run again.

    Raises:
        RecipeError: files of somebody else, or a recipe that changed where the change is not accepted.
        ResourceError, IntegrityError: as ``Workspace``.
    """
    work = Workspace(Path(recipe.output_dir), overwrite=overwrite)
    try:
        refuse_own_sources(recipe)
        if overwrite:
            if accept_changes:
                raise RecipeError("--overwrite starts anew, so --accept-changes would be ignored; choose one.")
            work.start_anew()
        elif work.recipe is None:
            work.refuse_strangers()
        if work.recipe is not None:
            _settle(work, recipe, accept_changes)
        elif accept_changes:
            raise RecipeError(
                f"--accept-changes: {work.folder.name!r} holds no run whose recipe could have changed; leave it out."
            )
    except BaseException:
        work.close()
        raise
    return work


def _settle(work: Workspace, recipe: Recipe, accept_changes: Sequence[str]) -> None:
    """Compare with the recipe that the folder belongs to, and forget the stages that accepted changes reach."""
    before = _recorded(work)
    changed = [key for key in before.changed_keys(recipe) if key not in _PLACES]
    if unknown := [key for key in accept_changes if not any(_within(one, key) for one in changed)]:
        raise RecipeError(f"--accept-changes {unknown[0]}: that key has not changed.{nearest(unknown[0], changed)}")
    if refused := [key for key in changed if not any(_within(key, one) for one in (*accept_changes, _FREE))]:
        whole = [key for key in changed if not any(_within(key, one) for one in changed if one != key)]
        flags = " ".join(f"--accept-changes {key}" for key in whole)
        raise RecipeError(
            f"the recipe changed since the run in {work.folder.name!r} began:\n{before.difference(recipe)}\n"
            f"{refused[0]} is not accepted. Take it back, choose another output_dir, pass --overwrite, or: {flags}"
        )
    if changed:
        first = min(ORDER.index(_FIRST_STAGE.get(key.split(".")[0], "student")) for key in changed)
        if _pruning(before) != _pruning(recipe):  # bits decide on widths, too
            first = min(first, ORDER.index("student"))
        work.forget(ORDER[first:], inputs=[name for name in work.manifest["inputs"] if _reaches(changed, name)])


def _pruning(recipe: Recipe) -> list[dict[str, Any]]:
    return [entry.model_dump(mode="json") for entry in recipe.effective_pruning()]


def _reaches(changed: Sequence[str], name: str) -> bool:
    """Whether one of the changed keys says which input this is: the data of a split, the model or the teacher."""
    keys = {"model": ("model", "revision"), "teacher": ("teacher",)}.get(name.split(".")[0], ("data",))
    return any(key in keys or key.startswith(tuple(f"{section}." for section in keys)) for key in changed)


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _recorded(work: Workspace) -> Recipe:
    try:
        return Recipe.from_record(work.recipe or {})
    except ValueError:
        raise IntegrityError(
            f"{work.folder.name}: the recipe in its manifest is not one of this version; pass --overwrite to start anew."
        ) from None
