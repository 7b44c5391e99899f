"""How long to wait for a server: a limit for each call, a limit for all of them, and pauses that grow between tries."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from hf_shrink.errors import ResourceError

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before the second try, the third, ...; after the last of them there is no further try."""
LONGEST_PAUSE = 120.0
"""A server that asks for a longer one (Retry-After) is told no."""


class Again(Exception):
    """The call failed in a way that may pass.

    Attributes:
        reason: what happened, in one line.
        after: seconds that the server asks to wait; None leaves the choice to the caller.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Patience:
    """A wall-clock limit that starts now.

    Args:
        seconds: above 0.
        pauses: between tries; see ``PAUSES``.
        sleep: waits; tests replace it.
    """

    def __init__(self, seconds: float, pauses: tuple[float, ...] = PAUSES, sleep: Callable[[float], None] = time.sleep) -> None:
        self._seconds, self._pauses, self._sleep = seconds, pauses, sleep
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the limit, at least 0."""
        return max(self._end - time.monotonic(), 0.0)

    def timed(self, call: Callable[[], T], limit: float) -> T:
        """``call()``, given up after ``limit`` seconds or at the end of the whole.

        The client under us waits for ever where a server accepts and never answers, so the call runs in a thread of its own,
        which is left behind then.

        Raises:
            Again: no answer in time. Also whatever ``call`` raises.
        """
        answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:
                answers.put((None, error))

        limit = min(limit, self.left())
        threading.Thread(target=work, daemon=True).start()
        try:
            answer, error = answers.get(timeout=limit)
        except queue.Empty:
            raise Again(f"no answer within {limit:.3g} s") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]

    def pause(self, tries: int, problem: Again, what: str) -> None:
        """Wait before the next try.

        Args:
            tries: how many have failed.
            problem: how the last one did.
            what: the step, as the error names it.

        Raises:
            ResourceError: there is no further try, or no time for it.
        """
        wait = self._pauses[min(tries, len(self._pauses)) - 1] if problem.after is None else problem.after
        if tries > len(self._pauses) or wait > min(self.left(), LONGEST_PAUSE):
            why = f"after {tries} tries" if tries > len(self._pauses) else f"within {self._seconds:.3g} s"
            raise ResourceError(
                f"{what}: {problem.reason}; not done {why}.\nRun the same command again: what has arrived is not sent twice."
            )
        self._sleep(wait)

    def retry(self, call: Callable[[], T], limit: float, what: str) -> T:
        """``timed(call)`` until it does not raise ``Again``; for calls that may be repeated.

        Raises:
            ResourceError: as ``pause``.
        """
        tries = 0
        while True:
            try:
                return self.timed(call, limit)
            except Again as problem:
                tries += 1
                self.pause(tries, problem, what)
