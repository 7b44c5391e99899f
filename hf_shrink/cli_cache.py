"""The command about a teacher's answers on the disk."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_shrink.terminal import Json, Overrides, recipe_of, reported, show


@reported
def cache(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe with a cache section; with --inspect a folder, too.")
    ],
    set_: Overrides = [],  # noqa: B006
    look: Annotated[bool, typer.Option("--inspect", help="Write nothing: say what is there, and check every row.")] = False,
    as_json: Json = False,
) -> None:
    """Write what a recipe's teacher says about its training rows, once. Run it again to go on where it stopped."""
    from hf_shrink.caching import check_whole, folder_of, inspect_cache

    with contextlib.redirect_stdout(sys.stderr):
        if look:
            result = inspect_cache(folder_of(recipe, set_))
        else:
            parsed = recipe_of(recipe, set_)
            from hf_shrink.pipeline import build_cache

            result = build_cache(parsed)
    show(result, as_json)
    check_whole(result)


COMMANDS = (cache,)
