"""95% intervals by resampling the evaluation samples, of a score and of the comparison of two models on the same samples."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Statistic = Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]
"""How often each sample was drawn, ``[draws, samples]``, to the score of each draw, ``[draws]``."""

_CELLS = 4_000_000
"""Entries of one block of weights, about 16 MB: memory stays flat however many samples there are."""


def resamples(samples: int, draws: int, *, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of ``[<= draws, samples]``: how often each sample occurs when ``samples`` of them are drawn with replacement.

    The same for the same three numbers, so that two models are judged on the same draws.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // samples)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picked = generator.integers(samples, size=(rows, samples))
        cells = picked + samples * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float32)


def draw_scores(statistics: Sequence[Statistic], samples: int, draws: int, *, seed: int = 0) -> npt.NDArray[np.float64]:
    """``[statistics, draws]``: every statistic on the same resamples, so that differences between rows are paired."""
    blocks = [np.stack([of(weights) for of in statistics]) for weights in resamples(samples, draws, seed=seed)]
    return np.concatenate(blocks, axis=1)


def interval(scores: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """The middle 95% of ``[draws]`` (percentile bootstrap), or None where a draw has no finite score."""
    if not np.isfinite(scores).all():
        return None
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
