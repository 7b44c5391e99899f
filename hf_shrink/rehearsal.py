"""The code on a card is run before the card is made, on the folder that it is about.

In this process, because another one would import for eight seconds at the end of each run, and a copy of one that has trained
has threads that hold locks. The code is all ours; a card's texts are in it as quoted names only. What running it could leave
behind comes back after: random numbers, warnings, the connection to the Hub. What only this process knows is taken away:
hf_shrink's part of transformers, where the code does not import it, and the network.
"""

import ast
import contextlib
import importlib.util
import io
import json
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_shrink.errors import IntegrityError
from hf_shrink.lines import first_line
from hf_shrink.loading.quantizer import unregistered
from hf_shrink.markdown import clean
from hf_shrink.publishing.usage import FOLDER, codes, fingerprint
from hf_shrink.quiet import quiet_loading

_LINES, _CHARACTERS = 20, 800
_NAME = "<the card's code>"


def rehearse(report: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Run every piece of code that the card of ``report`` has, with ``folder`` in the place of the name on the Hub.

    Args:
        report: plain data; what it says of an earlier rehearsal is not read.
        folder: with the model, its tokenizer and what else the code opens.

    Returns:
        For the report, under ``usage``: by piece its ``sha256`` and what it ``printed``, or why it was ``not_executed``.

    Raises:
        IntegrityError: a piece fails; the message has the line and what it raised.
    """
    return {piece: _run(code, folder) for piece, code in codes(report).items()}


def _run(code: str, folder: Path) -> dict[str, str]:
    done = {"sha256": fingerprint(code)}
    if missing := _missing(code, folder):
        return {**done, "not_executed": f"{missing} is not installed"}
    here = code.replace(json.dumps(FOLDER)[1:-1], json.dumps(folder.resolve().as_posix())[1:-1])
    printed = io.StringIO()
    try:
        with _aside(code), contextlib.redirect_stdout(printed):
            exec(compile(here, _NAME, "exec"), {"__name__": "__card__"})
    except (MemoryError, torch.OutOfMemoryError):
        return {**done, "not_executed": "the memory is too small to load the model once more"}
    except Exception as error:
        raise IntegrityError(_failure(code, folder, error)) from error
    return {**done, "printed": _short(printed.getvalue())}


@contextlib.contextmanager
def _aside(code: str) -> Iterator[None]:
    """As for a stranger: no network, no word on the screen, and hf_shrink known only where ``code`` imports it."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    alone = contextlib.nullcontext() if "hf_shrink" in _imports(code) else unregistered()
    with alone, quiet_loading(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline


def _imports(code: str) -> set[str]:
    """The packages that ``code`` imports by name."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def _missing(code: str, folder: Path) -> str | None:
    """A package that the code or the model's files need and that is not installed; None where all are."""
    config = folder / "config.json"
    stored = "bitsandbytes" in (config.read_text(encoding="utf-8") if config.is_file() else "")
    needed = {*_imports(code), *({"bitsandbytes"} if stored else ()), *({"peft"} if "load_adapter" in code else ())}
    return next((name for name in sorted(needed) if importlib.util.find_spec(name) is None), None)


def _failure(code: str, folder: Path, error: Exception) -> str:
    """Which line of the code fails and how, with the folder by its last name."""
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME]
    number = (numbers[-1] if numbers else getattr(error, "lineno", None)) or 1
    line, said = code.splitlines()[number - 1].strip(), first_line(error).replace(folder.resolve().as_posix(), folder.name)
    return (
        f"README.md: not made, because line {number} of its code that uses the model fails on this folder: {line}\n"
        f"{type(error).__name__}: {said}\n"
        "All other files are there. Repair the files that it names, or report it to hf_shrink, and run the recipe again."
    )


def _short(printed: str) -> str:
    """Whole lines of printable text, as many as a reader wants to see."""
    lines = [clean(line) for line in printed.strip().splitlines()]
    cut = lines[:_LINES] + (["..."] if len(lines) > _LINES else [])
    text = "\n".join(cut)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS].rstrip() + " ..."
