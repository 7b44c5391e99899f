"""Turn-taking and the summary of times, with fakes: no test here looks at the clock."""

import itertools

import pytest
import torch

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.inputs import check_lengths
from hf_shrink.measurement.measure import measure
from hf_shrink.measurement.speed import speed, summary, take_turns, threads
from hf_shrink.measurement.subjects import Bench, Subject
from tests.tiny import tiny_classifier


def test_every_round_runs_every_model_and_starts_with_another_one():
    """Model after model, a machine that gets busy halfway makes the second model look slow."""
    seen: list[int] = []
    ticks = itertools.count()
    seconds = take_turns({i: lambda i=i: seen.append(i) for i in range(3)}, runs=4, warm_up=2, clock=lambda: float(next(ticks)))
    assert seen[::2] == seen[1::2]  # once untimed, once timed
    rounds = [seen[start : start + 6 : 2] for start in range(0, len(seen), 6)]
    assert len(rounds) == 6 and all(sorted(turn) == [0, 1, 2] for turn in rounds)
    timed = rounds[2:]
    assert [turn[0] for turn in timed] == [0, 1, 2, 0]
    assert {i: len(times) for i, times in seconds.items()} == {0: 4, 1: 4, 2: 4}


def test_a_slow_phase_falls_on_all_models_alike():
    """The reason for taking turns, as a law: drift over time cancels in the ratio of two equal models."""
    clock = {"now": 0.0, "calls": 0}

    def work() -> None:
        clock["calls"] += 1
        clock["now"] += 1.0 if clock["calls"] < 20 else 5.0

    seconds = take_turns({0: work, 1: work}, runs=20, warm_up=0, clock=lambda: clock["now"])
    first, second = (sorted(times)[len(times) // 2] for times in seconds.values())
    assert first == second == 5.0
    assert abs(sum(seconds[0]) - sum(seconds[1])) <= 4.0


def test_the_wake_of_another_model_is_not_timed():
    """A run with more stages would call each of them slower: its weights have left the caches while the others ran."""
    clock, last = {"now": 0.0}, {"who": -1}

    def work(who: int) -> None:
        clock["now"] += 1.0 if last["who"] == who else 4.0
        last["who"] = who

    for others in (1, 5):
        calls = {i: lambda i=i: work(i) for i in range(1 + others)}
        assert take_turns(calls, runs=3, warm_up=1, clock=lambda: clock["now"])[0] == [1.0, 1.0, 1.0]


def test_the_summary_is_the_median_the_95th_percentile_and_what_follows():
    """Throughput from the mean would let one hiccup decide."""
    times = [0.010] * 10 + [0.020] * 9 + [1.0]
    p50, p95, rate = summary(times, batch_size=4, setting="cpu, batch 4")
    assert p50.value == pytest.approx(15.0) and p50.unit == "ms"
    assert p95.value == pytest.approx(1000 * (0.020 + 0.05 * 0.98))  # linear between the 19th and the 20th of 20
    assert rate.value == pytest.approx(4 / 0.015) and rate.unit == "samples/s"
    assert {m.setting for m in (p50, p95, rate)} == {"cpu, batch 4"}


def test_threads_are_set_and_put_back_even_after_an_error():
    """A measurement that leaves one thread behind makes the rest of the run slow."""
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
    with threads(None) as count:
        assert count == before


def test_each_model_is_timed_at_each_batch_size_and_says_how():
    """A latency without its setting cannot be compared with anything."""
    config = MeasurementConfig(batch_sizes=(1, 3), length=8, runs=3, threads=1)
    subjects = (Subject("a", model=tiny_classifier("bert")), Subject("floor"), Subject("b", model=tiny_classifier("gpt2")))
    found = speed(Bench(subjects, config))
    assert [len(measurements) for measurements in found] == [6, 0, 6]
    assert {m.setting for m in found[0]} == {
        f"cpu, 1 thread, batch {size}, 8 tokens, 3 warm rounds after 3, float32" for size in (1, 3)
    }
    assert all(m.value > 0 for m in (*found[0], *found[2]))


def test_a_model_that_cannot_take_a_batch_says_so_in_one_line():
    """GPT-2 without a padding token raises from deep inside its forward pass."""
    model = tiny_classifier("gpt2")
    model.config.pad_token_id = None
    config = MeasurementConfig(batch_sizes=(2,), length=8, runs=3)
    with pytest.raises(MismatchError, match=r"timing batch 2: .*padding token"):
        speed(Bench((Subject("a", model=model),), config))


def test_further_lengths_have_rows_of_their_own_beside_the_first():
    """In one row with it, a longer text would read as a slower model; asked for ``batch=1``, two numbers would answer."""
    config = MeasurementConfig(batch_sizes=(1, 2), length=8, more_lengths=(4, 16), runs=3, memory=False)
    report = measure(tiny_classifier(), config=config)
    table = compare([report])
    labels = [row.label for row in table.rows if row.name == "latency_p50"]
    assert labels == [
        *(f"latency p50, batch {size}" for size in (1, 2)),
        *(f"latency p50, batch {size} of {length} tokens" for length in (4, 16) for size in (1, 2)),
    ]
    assert "8 tokens" in report.find("latency_p50", batch=1).parts and table.warnings == ()
    assert "batch 2 of 16 tokens, cpu" in table.csv()


def test_a_length_that_a_model_has_no_positions_for_is_found_before_it_is_trained():
    """Found by the clock, it ends the run when all is trained."""
    model = tiny_classifier()
    check_lengths(MeasurementConfig(length=64), model)
    for words, key in (({"length": 65}, "length"), ({"more_lengths": (16, 65)}, "more_lengths")):
        with pytest.raises(RecipeError, match=rf"measurement\.{key}: 65 tokens, but a model takes at most 64"):
            check_lengths(MeasurementConfig(**{"length": 8, **words}), model)
    with pytest.raises(RecipeError, match="8 tokens are timed twice"):
        MeasurementConfig(length=8, more_lengths=(16, 8))
