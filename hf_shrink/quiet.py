"""What is shown while work goes on: a line where somebody looks, and no report that hf_shrink gives as an error anyway."""

import logging as levels
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


def say(line: str) -> None:
    """One line of progress on stderr, where somebody looks at it."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load report (every load here is checked key by key), and no bars where stderr is no terminal; both come back after."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(max(verbosity, levels.ERROR))
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
