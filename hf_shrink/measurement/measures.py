"""Everything that can be measured, one entry each; the table, the report and the card are made from this."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from hf_shrink.measurement.attribution import attribution
from hf_shrink.measurement.compute import compute
from hf_shrink.measurement.confidence import confidence
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.energy import CO2, ENERGY, energy
from hf_shrink.measurement.harness import HARNESS, harness
from hf_shrink.measurement.memory import memory
from hf_shrink.measurement.quality import quality
from hf_shrink.measurement.robustness import robustness
from hf_shrink.measurement.size import disk, held, parameters
from hf_shrink.measurement.speed import speed, threads
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.values import Measurement

Function = Callable[[Bench], list[list[Measurement]]]


@dataclass(frozen=True)
class Row:
    """How one measurement appears in a table.

    Attributes:
        label: what people read.
        better: which way is better; None where neither is.
        against: how a value is set against the baseline's: as a ratio, or not at all.
        tells: part of the setting that belongs to the label, by its first word: ``batch`` gives "latency p50, batch 32".
        noise: a ratio within ``1 +- noise`` is no change worth a sentence.
        remark: whether getting worse is worth a sentence.
        hub: id of the metric on the Hub, for the card's metadata; None for what is no quality.
    """

    label: str
    better: Literal["lower", "higher"] | None = None
    against: Literal["ratio"] | None = None
    tells: str | None = None
    noise: float = 0.0
    remark: bool = False
    hub: str | None = None

    @property
    def shown(self) -> str:
        """The label; a quality of which less is better says so, because of most qualities more is."""
        return f"{self.label} (lower is better)" if self.hub and self.better == "lower" else self.label


@dataclass(frozen=True)
class Measure:
    """A function that measures all subjects, and a row for each name it may return."""

    function: Function
    rows: Mapping[str, Row]


def each(function: Callable[[Subject, MeasurementConfig], list[Measurement]]) -> Function:
    """Let a function of one subject measure all of them, one after the other."""
    return lambda bench: [function(subject, bench.config) for subject in bench.subjects]


def _memory(bench: Bench) -> list[list[Measurement]]:
    """Two processes at a time: each spends most of its time on imports, and nothing here is timed."""
    if not bench.config.memory:
        return [[] for _ in bench.subjects]
    with threads(bench.config.threads) as count, ThreadPoolExecutor(max_workers=2) as pool:
        folders = [subject.folder for subject in bench.subjects]
        take = functools.partial(memory, config=bench.config, threads=count)
        return list(pool.map(lambda folder: [] if folder is None else take(folder), folders))


def _smaller(label: str, *, remark: bool = False) -> Row:
    return Row(label, better="lower", against="ratio", remark=remark)


def _timed(label: str, *, remark: bool = False) -> Row:
    return Row(label, better="lower", against="ratio", tells="batch", noise=0.05, remark=remark)


# Counting comes before any forward pass: some CPUs repack 4-bit weights in place at the first one.
def _points(name: str, label: str, *, hub: str) -> dict[str, Row]:
    """A score, its difference from the baseline's in points, and the part of it that is left."""
    return {
        name: Row(label, "higher", remark=True, hub=hub),
        f"{name}_difference": Row(f"{label} difference", "higher"),
        f"{name}_recovery": Row(f"{label} recovery", "higher"),
    }


def _ratio(name: str, label: str, *, hub: str) -> dict[str, Row]:
    """A score of which less is better, and how many times the baseline's it is."""
    return {
        name: Row(label, "lower", against="ratio", remark=True, hub=hub),
        f"{name}_ratio": Row(f"{label} ratio", "lower"),
    }


MEASURES: Mapping[str, Measure] = {
    "parameters": Measure(
        each(parameters),
        {
            "parameters": _smaller("parameters", remark=True),
            "parameters_non_embedding": _smaller("parameters without embeddings"),
            "parameters_non_zero": _smaller("parameters other than zero"),
        },
    ),
    "disk": Measure(each(disk), {"bytes_on_disk": _smaller("weights on disk", remark=True)}),
    "held": Measure(each(held), {"bytes_in_memory": _smaller("weights in memory")}),
    "memory": Measure(
        _memory, {"memory_peak": Row("peak memory", "lower", against="ratio", tells="batch", noise=0.05, remark=True)}
    ),
    "compute": Measure(each(compute), {"macs": _smaller("MACs", remark=True)}),
    "speed": Measure(
        speed,
        {
            "latency_p50": _timed("latency p50", remark=True),
            "latency_p95": _timed("latency p95"),
            "throughput": Row("throughput", "higher", against="ratio", tells="batch", noise=0.05),
            "tokens_per_second": Row("tokens read per second", "higher", against="ratio", tells="batch", noise=0.05),
        },
    ),
    "quality": Measure(
        quality,
        {
            **_points("accuracy", "accuracy", hub="accuracy"),
            **_points("macro_f1", "macro F1", hub="f1"),
            **_points("macro_precision", "macro precision", hub="precision"),
            **_points("macro_recall", "macro recall", hub="recall"),
            **_points("matthews", "Matthews correlation", hub="matthews_correlation"),
            **_points("entity_f1", "entity F1", hub="f1"),
            **_points("tag_accuracy", "tag accuracy", hub="accuracy"),
            **_points("micro_f1", "micro F1", hub="f1"),
            **_points("pearson", "Pearson correlation", hub="pearsonr"),
            **_points("spearman", "Spearman correlation", hub="spearmanr"),
            **_ratio("mse", "mean squared error", hub="mse"),
            **_ratio("perplexity", "perplexity", hub="perplexity"),
            **_points("next_token_accuracy", "next-token accuracy", hub="accuracy"),
            "next_token_agreement": Row("same next token as the baseline", "higher"),
            **_points("answer_f1", "answer F1", hub="f1"),
            **_points("exact_match", "exact match", hub="exact_match"),
            **_points("similarity_spearman", "Spearman correlation of similarities", hub="spearmanr"),
            "cosine_to_baseline": Row("mean cosine to the baseline's vectors", "higher"),
            **_points("rouge_l", "ROUGE-L", hub="rouge"),
            **_points("chrf", "chrF", hub="chrf"),
            **_ratio("target_perplexity", "perplexity of targets", hub="perplexity"),
            **_ratio("masked_perplexity", "perplexity of hidden tokens", hub="perplexity"),
            **_points("masked_token_accuracy", "hidden-token accuracy", hub="accuracy"),
            "masked_token_agreement": Row("same hidden token as the baseline", "higher"),
        },
    ),
    "confidence": Measure(
        confidence,
        {
            "agreement": Row("same answer as the baseline", "higher"),
            "divergence": Row("KL(baseline || model) of the answers", "lower"),
            "confidence": Row("mean probability of the answer"),
            "calibration_error": Row("expected calibration error", "lower", against="ratio", noise=0.25, remark=True),
        },
    ),
    "robustness": Measure(
        robustness,
        {
            "robustness": Row("accuracy on disturbed texts", "higher", remark=True),
            "robustness_difference": Row("accuracy on disturbed texts, difference", "higher"),
            "robustness_recovery": Row("accuracy on disturbed texts, recovery", "higher"),
            "robustness_loss": Row("accuracy lost by disturbing the texts", "lower"),
            "robustness_clean": Row("accuracy on the same texts undisturbed", "higher"),
            "robustness_typos": Row("accuracy under typos", "higher"),
            "robustness_casing": Row("accuracy under other casing", "higher"),
            "robustness_dropped_words": Row("accuracy with words left out", "higher"),
            "robustness_swapped_words": Row("accuracy with words swapped", "higher"),
        },
    ),
    "attribution": Measure(
        attribution, {"attribution_agreement": Row("same words matter as to the baseline (-1 to 1)", "higher")}
    ),
    "harness": Measure(harness, {name: Row(label, better, tells="task") for name, (label, better) in HARNESS.items()}),
    "energy": Measure(energy, {ENERGY: Row("energy of its training"), CO2: Row("CO2 of its training")}),
}

_FIRST = ("quality", "harness", "confidence", "robustness", "attribution")


def rows() -> dict[str, Row]:
    """Every row by the name of its measurement, what models say first: the order of the tables."""
    order = [*_FIRST, *(name for name in MEASURES if name not in _FIRST)]
    return {name: row for measure in order for name, row in MEASURES[measure].rows.items()}
