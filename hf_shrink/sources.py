"""Where a run may not read: in the folder that it writes."""

from pathlib import Path

from hf_shrink.errors import RecipeError
from hf_shrink.models.reference import resolve
from hf_shrink.recipe import Recipe
from hf_shrink.workspace import STAGES


def refuse_own_sources(recipe: Recipe) -> None:
    """Raise RecipeError where a run starts from its own output: it would write over it, and could not be resumed."""
    folder = Path(recipe.output_dir)
    named = {"model": recipe.model, **{f"teacher.{i}.model": each.model for i, each in enumerate(recipe.teachers)}}
    if len(recipe.teachers) == 1:
        named["teacher.model"] = named.pop("teacher.0.model")
    for key, reference in named.items():
        source = Path(resolve(reference)).resolve()
        if source == folder.resolve() or source.is_relative_to((folder / STAGES).resolve()):
            raise RecipeError(f"{key}: lies in output_dir {folder.name!r}, which this run writes; choose another output_dir.")
