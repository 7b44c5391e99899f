"""Tasks of lm-eval: found by name, loaded once, and kept from running anything but lm-eval's own code."""

import contextlib
import functools
import io
import logging
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_shrink.errors import MismatchError, RecipeError, ResourceError, SecurityError, ShrinkError
from hf_shrink.lines import first_line
from hf_shrink.measurement.config import LmEvalConfig
from hf_shrink.measurement.harness_folder import WHERE, check_folder, digest
from hf_shrink.quiet import quiet_loading
from hf_shrink.tables import nearest

_SEED = 1234
"""Of the examples that are shown first, and of whatever else is drawn."""


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data.

    Attributes:
        loaded: what lm-eval evaluates.
        own: the names of those that the user's folder defines.
        definition: digest of that folder's YAML.
    """

    loaded: Any
    own: frozenset[str] = frozenset()
    definition: str = ""


def check_tasks(config: LmEvalConfig, *, download: bool) -> None:
    """Refuse what could not be measured at the end of a run.

    Args:
        config: which tasks.
        download: also load their data, from the network where they are not in the cache.

    Raises:
        ResourceError: lm-eval is not installed, or data cannot be had.
        RecipeError: an unknown task, or no such folder.
        SecurityError: a task would run code: its folder's, the Hub's, or a model's.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError:
        raise ResourceError(f"{WHERE}: lm-eval is not installed. Try: pip install 'hf-shrink[lm-eval]'") from None
    known = _index(config)
    for name in config.tasks:
        if name not in known.task_index:
            raise RecipeError(
                f"{WHERE}.tasks: lm-eval has no task {name!r}.{nearest(name, known.task_index)} "
                "`lm-eval ls tasks` lists them; your own are read from `folder`."
            )
    for name, entry in _leaves(known, config.tasks).items():
        _check_task(name, entry)
    if download:
        load_tasks(config)


def load_tasks(config: LmEvalConfig) -> Tasks:
    """The tasks with their data. Errors as in ``check_tasks``."""
    known = _index(config)
    with closed("data of the tasks"):
        loaded = known.load(list(config.tasks))
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    if config.folder is None:
        return Tasks(loaded)
    root = Path(config.folder).resolve()
    own = {name for name, entry in known.task_index.items() if entry.yaml_path and root in entry.yaml_path.resolve().parents}
    return Tasks(loaded, frozenset(own), digest(root))


@contextlib.contextmanager
def closed(what: str) -> Iterator[None]:
    """Let lm-eval work, with every door shut through which code from elsewhere would come in.

    Templates run in a sandbox, ``evaluate.load`` (which imports metrics from the Hub) is refused, log and bars stay silent
    where nobody looks, the random numbers of the caller go on as if nothing had been drawn, and errors become ours.
    """
    import evaluate
    from jinja2.exceptions import SecurityError as Escape
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    refused: list[str] = []

    def load(path: str, *_: Any, **__: Any) -> Any:
        refused.append(path)
        raise SecurityError(f"{WHERE}: metric {path!r} is code from elsewhere, which is never run.")

    sandbox = SandboxedEnvironment(undefined=utils.env.undefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    before = utils.env, evaluate.load
    utils.env, evaluate.load = sandbox, load
    try:
        with quiet_loading(), _unseen(), _own_randomness():
            yield
    except ShrinkError:
        raise
    except Escape as error:
        raise SecurityError(f"{WHERE}: {what}: a template reaches for more than its example: {first_line(error)}") from None
    except MemoryError as error:
        raise ResourceError(f"{WHERE}: {what}: not enough memory. Use a smaller batch, or a limit.") from error
    except Exception as error:  # of any library that reads data: datasets, httpx, fsspec, pyarrow
        if refused:
            raise SecurityError(f"{WHERE}: metric {refused[0]!r} is code from elsewhere, which is never run.") from None
        kind = ResourceError if isinstance(error, OSError) else MismatchError
        hint = "\nFetch the data once while online, or name another task." if kind is ResourceError else ""
        raise kind(f"{WHERE}: {what}: {first_line(error)}{hint}") from error
    finally:
        utils.env, evaluate.load = before
    if refused:  # lm-eval goes on without a metric that it cannot load
        raise SecurityError(f"{WHERE}: metric {refused[0]!r} is code from elsewhere, which is never run. Use another task.")


def _index(config: LmEvalConfig) -> Any:
    """lm-eval's list of tasks: of the folder alone where that has all of them, since its own takes seconds to read."""
    folder = None if config.folder is None else Path(config.folder)
    if folder is None:
        return _manager(None, True, "")
    if not folder.is_dir():
        raise RecipeError(f"{WHERE}.folder: {folder.name!r} is no folder. Name one with lm-eval's YAML files.")
    check_folder(folder)
    own = _manager(str(folder.resolve()), False, digest(folder))
    named = _leaves(own, config.tasks)
    if named and all(name in own.task_index for name in config.tasks):
        return own
    return _manager(str(folder.resolve()), True, digest(folder))


@functools.lru_cache(maxsize=2)
def _manager(folder: str | None, defaults: bool, version: str) -> Any:
    """A reader of tasks; ``version`` makes one of a folder that has changed another one."""
    from lm_eval.tasks import TaskManager

    with _unseen():
        return TaskManager(include_path=folder, include_defaults=defaults)


def _leaves(known: Any, names: Any) -> dict[str, Any]:
    """The entries of all tasks that groups and tags stand for."""
    found: dict[str, Any] = {}
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        entry = known.task_index.get(name)
        if entry is None or name in seen:
            continue
        seen.add(name)
        members = (entry.cfg or {}).get("task")
        if isinstance(members, list):
            waiting += [each if isinstance(each, str) else each.get("task") or each.get("group") for each in members]
            waiting = [each for each in waiting if isinstance(each, str)]
        elif entry.kind.name == "TAG":
            waiting += list(entry.tags)
        else:
            found[name] = entry
    return found


def _check_task(name: str, entry: Any) -> None:
    from lm_eval.api import metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    config = entry.cfg or {}
    if config.get("unsafe_code"):
        raise SecurityError(f"{WHERE}.tasks: {name!r} runs as code what a model writes, which is never done; use another.")
    if config.get("process_results") is not None:
        return
    for each in config.get("metric_list") or ():
        metric = each.get("metric") if isinstance(each, dict) else None
        is_function = isinstance(metric, str) and os.sep in metric and entry.yaml_path.parent.as_posix() in metric
        if isinstance(metric, str) and not is_function and (each.get("hf_evaluate") or metric not in metric_registry):
            raise SecurityError(
                f"{WHERE}.tasks: {name!r} is judged by {metric!r}, which is code from the Hub and never run. Use another task."
            )


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """No log of lm-eval; what it prints goes to stderr where somebody looks there, and nowhere else."""
    logger, sink = logging.getLogger("lm_eval"), sys.stderr if sys.stderr.isatty() else io.StringIO()
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.CRITICAL)
    os.environ["DISABLE_MULTIPROC"] = "1"  # else its intervals are drawn in processes forked from this one
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """The same draws for every model, and none of the caller's."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def begin_anew(tasks: Tasks) -> None:
    """Show every model the same examples: a task goes on drawing where it stopped."""
    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=_SEED)
