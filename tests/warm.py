"""A command line or a script in a process of its own, without ten seconds of imports: forked from one that has them already.

The process it is forked from has imported hf_shrink and its libraries and run nothing. What is about imports themselves,
about the console script, or about variables that libraries read while they are imported needs ``subprocess`` instead.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "hf_shrink.pipeline",
        "hf_shrink.cli",
        "datasets",
        "peft",
        "transformers.pipelines",
        "transformers.models.bert.modeling_bert",
    ]
)

Done = subprocess.CompletedProcess[str]


def hf_shrink(*words: str, cwd: Path | None = None) -> Done:
    """``hf-shrink WORDS``."""
    return _run(_command, words, cwd)


def python(code: str, *words: str, cwd: Path | None = None) -> Done:
    """``python -c CODE WORDS``."""
    return _run(_code, (code, *words), cwd)


def _run(what: Callable[[Sequence[str]], None], words: Sequence[str], cwd: Path | None) -> Done:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        for path in (out, err):
            path.touch()
        place = (str(cwd or Path.cwd()), dict(os.environ), str(out), str(err))
        process = _SERVER.Process(target=_inside, args=(what, words, *place))
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(list(words), 300)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(list(words), process.exitcode, out.read_text(), err.read_text())


def _inside(
    what: Callable[[Sequence[str]], None], words: Sequence[str], cwd: str, environment: dict[str, str], out: str, err: str
) -> None:
    for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, how), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    what(words)


def _command(words: Sequence[str]) -> None:
    from hf_shrink.cli import main

    sys.argv = ["hf-shrink", *words]
    main()


def _code(words: Sequence[str]) -> None:
    code, sys.argv = words[0], ["-c", *words[1:]]
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<code>", "exec"), space)
