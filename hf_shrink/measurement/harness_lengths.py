"""What lm-eval cuts off to make a request fit a model: it says so in its log alone, once for each request."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Fitting:
    """How the requests of one model fitted, counted while they are made.

    Attributes:
        most: tokens that the model takes.
        asked: requests: one for each answer that is weighed, each window of a rolling text, each text that is continued.
        cut: those that were longer, whose beginning was left out.
    """

    most: int
    asked: int = 0
    cut: int = 0

    def count(self, length: int, most: int) -> None:
        """One request of ``length`` tokens where ``most`` fit."""
        self.asked += 1
        self.cut += length > most


def watch_lengths(asked: Any) -> Fitting:
    """Count what goes through the two doors of an ``HFLM`` at which it cuts: weighing answers, and writing on.

    Args:
        asked: lm-eval's model; from now on it counts.
    """
    fitting = Fitting(most=int(asked.max_length))
    weigh, encode = asked._loglikelihood_tokens, asked.tok_batch_encode

    def weighing(requests: Any, *args: Any, **options: Any) -> Any:
        for _, context, continuation in requests:
            fitting.count(len(context) + len(continuation), fitting.most + 1)  # the last token is only told, not read
        return weigh(requests, *args, **options)

    def encoding(strings: Any, *args: Any, left_truncate_len: int | None = None, **options: Any) -> Any:
        if left_truncate_len:
            for text in strings:
                fitting.count(len(asked.tok_encode(text)), left_truncate_len)
        return encode(strings, *args, left_truncate_len=left_truncate_len, **options)

    asked._loglikelihood_tokens, asked.tok_batch_encode = weighing, encoding
    return fitting
