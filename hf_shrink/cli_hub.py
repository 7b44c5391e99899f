"""Commands about published models."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_shrink.terminal import Json, reported, show


@reported
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A finished run, or a folder with model, tokenizer, card.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub; made, private, where it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, or publish into one.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request; main stays as it is.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; made where it is missing.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name for the commit.")] = None,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and bytes; change nothing.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for all of it.")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Publish a finished folder in one commit. Run it again after a failure: it goes on, and never commits twice."""
    from hf_shrink.publishing.push import push as push_folder

    with contextlib.redirect_stdout(sys.stderr):
        result = push_folder(
            folder,
            repo,
            public=public,
            create_pr=create_pr,
            revision=revision,
            tag=tag,
            message=message,
            dry_run=dry_run,
            time_limit=time_limit,
        )
    show(result, as_json)


@reported
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or OWNER/NAME on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the Hub.")] = None,
    as_json: Json = False,
) -> None:
    """Check that a model is what its report says: files, weights, zeros, card, loading."""
    from hf_shrink.verification import verify_model

    with contextlib.redirect_stdout(sys.stderr):
        result = verify_model(model, revision=revision)
    show(result, as_json)


@reported
def card(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A finished run, or a published model's files.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace generated parts even where they were edited.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the card again from the report, if its code runs. What you wrote beside its generated parts stays."""
    from hf_shrink.publishing.readme import make_card
    from hf_shrink.rehearsal import rehearse

    with contextlib.redirect_stdout(sys.stderr):
        result = make_card(folder, overwrite=overwrite, rehearse=rehearse)
    show(result, as_json)


COMMANDS = (push, verify, card)
