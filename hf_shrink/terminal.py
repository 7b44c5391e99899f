"""What every command shares: errors as a few lines and an exit code, and a result for people or for programs."""

import errno
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.segment import Segment

from hf_shrink.errors import ResourceError, ShrinkError
from hf_shrink.lines import visible, without_home

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else on stdout.")]
RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a model made by one: folder or OWNER/NAME.")
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one key: --set training.max_steps=50")]

_RESOURCE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EFBIG,
}
_ERRNO_IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How safetensors says what the system said."""
_RESOURCE_WORDS = ("out of memory", "can't allocate memory", "No space left on device", "file write failed")


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into a few lines on stderr and an exit code; keep stdout for its result."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command again to go on", 130)
        except ShrinkError as error:
            _fail(str(error), error.code)
        except MemoryError:
            _fail("out of memory; lower the batch size or free some", ResourceError.code)
        except OSError as error:
            name = f"{Path(str(error.filename)).name}: " if error.filename else ""
            _fail(f"{name}{error.strerror or _first_line(error)}", ResourceError.code if _is_resource(error) else 1)
        except typer.Exit:
            raise
        except Exception as error:
            if _is_resource(error):  # torch and safetensors have no kind of error for a full memory or disk
                _fail(f"{_first_line(error)}\nFree memory or disk space and run the same command again.", ResourceError.code)
            _fail(f"unexpected {type(error).__name__}: {_first_line(error)}", 1, hint=True)

    return run


def _is_resource(error: Exception) -> bool:
    """Whether the machine or the network lacks something, rather than the recipe or this program."""
    if isinstance(error, OSError):
        return error.errno in _RESOURCE_ERRNOS or isinstance(error, ConnectionError | TimeoutError)
    if found := _ERRNO_IN_WORDS.search(str(error)):
        return int(found[1]) in _RESOURCE_ERRNOS
    return any(words in str(error) for words in _RESOURCE_WORDS)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _fail(message: str, code: int, *, hint: bool = False) -> None:
    if os.environ.get("HF_DEBUG"):
        traceback.print_exc()
    elif hint:
        message += "\nSet HF_DEBUG=1 for the traceback."
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/] {escape(visible(without_home(message)))}")
    raise typer.Exit(code)


class Printable:
    """Anything for the terminal, with what names of tensors or labels could tell it to do written out instead."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for part in console.render(self.inner, options):
            yield part if part.control else Segment(visible(part.text), part.style)


def show(result: Any, as_json: bool) -> None:
    """``result`` has ``to_json()`` and ``rich()``: one of them goes to stdout."""
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=1))
    else:
        Console(soft_wrap=not sys.stdout.isatty()).print(Printable(result.rich()))


def recipe_of(path: Path, overrides: list[str]) -> Any:
    """The recipe in a file, or of a model that was made by one."""
    from hf_shrink.recipe import Recipe

    if path.is_dir() or (not path.suffix and not path.exists() and len(path.parts) == 2):
        return Recipe.from_pretrained(path.as_posix(), overrides=tuple(overrides))
    return Recipe.from_yaml(path, overrides=tuple(overrides))
