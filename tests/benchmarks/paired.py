"""How much faster models are than another: each takes turns with that one alone, in one process."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from hf_shrink.measurement.speed import take_turns, threads
from hf_shrink.measurement.subjects import at_rest


def speedups(base: Any, models: dict[str, Any], size: int, runs: int, *, count: int = 1) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each model, and the median over the rounds of the time of ``base`` by its own.

    64 random tokens, ``size`` rows, ``count`` threads. A slow round counts for both. Only two models run in a round: with more
    of them none would find its weights in the caches, as it does where it is served alone.
    """
    ids = torch.randint(1000, 20_000, (size, 64), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}

    def call(model: Any) -> Callable[[], object]:
        return lambda: model(**inputs)

    found = {}
    for name, model in models.items():
        with threads(count), at_rest(base), at_rest(model):
            whole, own = take_turns({0: call(base), 1: call(model)}, runs=runs, warm_up=3).values()
        ratio = statistics.median(a / b for a, b in zip(whole, own, strict=True))
        found[name] = 1000 * statistics.median(own), ratio
    return found
