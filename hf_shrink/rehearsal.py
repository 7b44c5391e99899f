"""The code on a card is run before the card is made, on the folder that it is about.

In this process, because another one would import for eight seconds at the end of each run, and a copy of one that has trained
has threads that hold locks. The code is all ours; a card's texts are in it as quoted names only. What running it could leave
behind comes back after: random numbers, warnings, the connection to the Hub. What only this process knows is taken away:
hf_shrink's part of transformers, where the code does not import it, and the network. Code that comes with a model is refused;
nobody is asked.
"""

import ast
import contextlib
import importlib.util
import io
import json
import random
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from hf_shrink.errors import SecurityError
from hf_shrink.lines import first_line
from hf_shrink.loading.quantizer import unregistered
from hf_shrink.markdown import clean
from hf_shrink.publishing.usage import FOLDER, codes, fingerprint, model_digest
from hf_shrink.quiet import quiet_loading

_LINES, _CHARACTERS = 20, 800
_NAME = "<the card's code>"


def rehearse(report: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Run every piece of code that the card of ``report`` has, with ``folder`` in the place of the name on the Hub.

    Args:
        report: plain data; what it says of an earlier rehearsal is not read.
        folder: with the model, its tokenizer and what else the code opens.

    Returns:
        For the report, under ``usage``: by piece its ``sha256``, the ``model`` that it ran on (``model_digest``) and what it
        ``printed``; or why it was ``not_executed``; or the line on which it ``failed`` and what that raised.

    Raises:
        SecurityError: the model can only be loaded with code that comes with it.
    """
    digest = model_digest(folder)
    return {piece: _run(code, folder, digest) for piece, code in codes(report).items()}


def _run(code: str, folder: Path, digest: str) -> dict[str, str]:
    done = {"sha256": fingerprint(code), "model": digest}
    config = _config(folder)
    _refuse_kernels(config, folder.name)
    if missing := _missing(code, config):
        return {**done, "not_executed": f"{missing} is not installed"}
    quoted = json.dumps(folder.resolve().as_posix(), ensure_ascii=False)[1:-1]
    here = code.replace(FOLDER, quoted.encode("ascii", "backslashreplace").decode())  # Python's escapes, not those of JSON
    printed = io.StringIO()
    try:
        with _aside(code), contextlib.redirect_stdout(printed):
            exec(compile(here, _NAME, "exec"), {"__name__": "__card__"})
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise SecurityError(
                f"{folder.name}: it needs code from its own folder, which hf_shrink never runs. No card was made."
            ) from error
        if _is_memory(error):
            return {**done, "not_executed": "the memory is too small to load the model once more"}
        return {**done, "failed": _failure(code, folder, error)}
    return {**done, "printed": _short(printed.getvalue())}


@contextlib.contextmanager
def _aside(code: str) -> Iterator[None]:
    """As for a stranger: no network, no word on the screen, and hf_shrink known only where ``code`` imports it.

    Of a model with code of its own, transformers asks on the terminal whether to run it; with no time to answer, it refuses.
    """
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    offline, seconds = constants.HF_HUB_OFFLINE, dynamic_module_utils.TIME_OUT_REMOTE_CODE
    drawn, drawn_by_numpy = random.getstate(), numpy.random.get_state()
    alone = contextlib.nullcontext() if "hf_shrink" in _imports(code) else unregistered()
    with alone, quiet_loading(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        constants.HF_HUB_OFFLINE, dynamic_module_utils.TIME_OUT_REMOTE_CODE = True, 0
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE, dynamic_module_utils.TIME_OUT_REMOTE_CODE = offline, seconds
            random.setstate(drawn)
            numpy.random.set_state(drawn_by_numpy)


def _imports(code: str) -> set[str]:
    """The packages that ``code`` imports by name."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def _config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says; empty where it is missing or damaged, which the code itself will meet."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _refuse_kernels(config: Mapping[str, Any], name: str) -> None:
    for key in ("attn_implementation", "experts_implementation"):
        if "/" in (kernel := str(config.get(key) or config.get(f"_{key}") or "")):
            raise SecurityError(f"config of {name}: {key} {kernel!r} is code from the Hub. Remove the key.")


def _missing(code: str, config: Mapping[str, Any]) -> str | None:
    """A package that the code or the stored weights need and that is not installed; None where all are."""
    stored = config.get("quantization_config") or {}
    packed = stored.get("quant_method") == "bitsandbytes" or any(
        stored.get(key) for key in ("bitsandbytes", "load_in_8bit", "load_in_4bit")
    )
    needed = {*_imports(code), *({"bitsandbytes"} if packed else ()), *({"peft"} if "load_adapter" in code else ())}
    return next((name for name in sorted(needed) if importlib.util.find_spec(name) is None), None)


def _is_memory(error: Exception) -> bool:
    """Whether the machine is too small, however the library says it: torch's allocator on a CPU has no error of its own."""
    words = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error).lower() for each in words)


def _failure(code: str, folder: Path, error: Exception) -> str:
    """Which line of the code fails and how, with the folder by its last name."""
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME]
    number = (numbers[-1] if numbers else getattr(error, "lineno", None)) or 1
    line, said = code.splitlines()[number - 1].strip(), first_line(error).replace(folder.resolve().as_posix(), folder.name)
    return f"line {number}: {line}\n{type(error).__name__}: {said}"


def _short(printed: str) -> str:
    """Whole lines of printable text, as many as a reader wants to see."""
    lines = [clean(line) for line in printed.strip().splitlines()]
    cut = lines[:_LINES] + (["..."] if len(lines) > _LINES else [])
    text = "\n".join(cut)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS].rstrip() + " ..."
