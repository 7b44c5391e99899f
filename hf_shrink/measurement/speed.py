"""Latency and throughput, with all models taking turns so that a noisy machine treats them alike."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from hf_shrink.measurement.inputs import random_inputs
from hf_shrink.measurement.subjects import Bench, at_rest, device_of, explained, precision_of
from hf_shrink.measurement.values import Measurement, plural
from hf_shrink.tasks import task_of

WARM_UP = 3
"""Rounds before the clock counts: the first ones allocate memory and choose kernels."""


def speed(bench: Bench) -> list[list[Measurement]]:
    """Latency (median and 95th percentile) and throughput of every subject with a model, at each batch size and length."""
    models = {i: subject.model for i, subject in enumerate(bench.subjects) if subject.model is not None}
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    with threads(bench.config.threads) as count, contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(at_rest(model))
        for length, size in itertools.product((bench.config.length, *bench.config.more_lengths), bench.config.batch_sizes):
            calls = {i: _call(model, size, length) for i, model in models.items()}
            with explained(f"timing batch {size}"):
                times = take_turns(calls, runs=bench.config.runs, warm_up=WARM_UP)
            # One part of the setting goes into the label: of further lengths it has to name both.
            what = f"batch {size}, {length} tokens" if length == bench.config.length else f"batch {size} of {length} tokens"
            for i, seconds in times.items():
                where = f"{device_of(models[i]).type}, {plural(count, 'thread')}, {what}"
                setting = f"{where}, {rounds(bench.config.runs)}, {precision_of(models[i])}"
                found[i] += summary(seconds, batch_size=size, setting=setting)
                if task_of(type(models[i]).__name__) == "causal-lm":
                    found[i].append(_tokens(seconds, size * length, setting))
    return found


def take_turns(
    calls: Mapping[int, Callable[[], object]], *, runs: int, warm_up: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, list[float]]:
    """Seconds of each call in each of ``runs`` rounds; every round runs all of them, starting with another one.

    A slow phase of the machine thus falls on every model. Each call runs once untimed before it is timed: served alone a model
    finds its weights in the caches, but not in the wake of others, the less the more of them are compared.
    """
    order = list(calls)
    seconds: dict[int, list[float]] = {name: [] for name in order}
    for turn in range(-warm_up, runs):
        shift = turn % len(order) if order else 0
        for name in order[shift:] + order[:shift]:
            calls[name]()
            start = clock()
            calls[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def rounds(runs: int) -> str:
    """How ``take_turns`` timed, for the setting of a measurement."""
    return f"{runs} warm rounds after {WARM_UP}"


def summary(seconds: list[float], *, batch_size: int, setting: str) -> list[Measurement]:
    """Median and 95th percentile in ms; samples per second at the median."""
    middle, high = (float(np.percentile(seconds, q)) for q in (50, 95))
    return [
        Measurement(name="latency_p50", value=1000 * middle, unit="ms", setting=setting),
        Measurement(name="latency_p95", value=1000 * high, unit="ms", setting=setting),
        Measurement(name="throughput", value=batch_size / middle, unit="samples/s", setting=setting),
    ]


def _tokens(seconds: list[float], tokens: int, setting: str) -> Measurement:
    """Tokens a second at the median: those that are read at once, as a prompt is, not written one by one."""
    return Measurement(name="tokens_per_second", value=tokens / float(np.median(seconds)), unit="tokens/s", setting=setting)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run torch on ``count`` threads (None: as it is), yield that number, and put the old one back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _call(model: Any, batch_size: int, length: int) -> Callable[[], object]:
    inputs = random_inputs(model, batch_size=batch_size, length=length)
    device = device_of(model)

    def call() -> None:
        model(**inputs)
        if device.type != "cpu":  # an accelerator returns before it has finished
            torch.accelerator.synchronize(device)

    return call
