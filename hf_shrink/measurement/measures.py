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
            "accuracy": Row("accuracy", "higher", remark=True, hub="accuracy"),
            "accuracy_difference": Row("accuracy difference", "higher"),
            "accuracy_recovery": Row("accuracy recovery", "higher"),
            "macro_f1": Row("macro F1", "higher", remark=True, hub="f1"),
            "macro_f1_difference": Row("macro F1 difference", "higher"),
            "macro_f1_recovery": Row("macro F1 recovery", "higher"),
            "entity_f1": Row("entity F1", "higher", remark=True, hub="f1"),
            "entity_f1_difference": Row("entity F1 difference", "higher"),
            "entity_f1_recovery": Row("entity F1 recovery", "higher"),
            "tag_accuracy": Row("tag accuracy", "higher", remark=True, hub="accuracy"),
            "tag_accuracy_difference": Row("tag accuracy difference", "higher"),
            "tag_accuracy_recovery": Row("tag accuracy recovery", "higher"),
            "micro_f1": Row("micro F1", "higher", remark=True, hub="f1"),
            "micro_f1_difference": Row("micro F1 difference", "higher"),
            "micro_f1_recovery": Row("micro F1 recovery", "higher"),
            "pearson": Row("Pearson correlation", "higher", remark=True, hub="pearsonr"),
            "pearson_difference": Row("Pearson correlation difference", "higher"),
            "pearson_recovery": Row("Pearson correlation recovery", "higher"),
            "spearman": Row("Spearman correlation", "higher", remark=True, hub="spearmanr"),
            "spearman_difference": Row("Spearman correlation difference", "higher"),
            "spearman_recovery": Row("Spearman correlation recovery", "higher"),
            "mse": Row("mean squared error", "lower", against="ratio", remark=True, hub="mse"),
            "mse_ratio": Row("mean squared error ratio", "lower"),
            "perplexity": Row("perplexity", "lower", against="ratio", remark=True, hub="perplexity"),
            "perplexity_ratio": Row("perplexity ratio", "lower"),
            "next_token_accuracy": Row("next-token accuracy", "higher", remark=True, hub="accuracy"),
            "next_token_accuracy_difference": Row("next-token accuracy difference", "higher"),
            "next_token_accuracy_recovery": Row("next-token accuracy recovery", "higher"),
            "next_token_agreement": Row("same next token as the baseline", "higher"),
            "answer_f1": Row("answer F1", "higher", remark=True, hub="f1"),
            "answer_f1_difference": Row("answer F1 difference", "higher"),
            "answer_f1_recovery": Row("answer F1 recovery", "higher"),
            "exact_match": Row("exact match", "higher", remark=True, hub="exact_match"),
            "exact_match_difference": Row("exact match difference", "higher"),
            "exact_match_recovery": Row("exact match recovery", "higher"),
            "similarity_spearman": Row("Spearman correlation of similarities", "higher", remark=True, hub="spearmanr"),
            "similarity_spearman_difference": Row("Spearman correlation of similarities difference", "higher"),
            "similarity_spearman_recovery": Row("Spearman correlation of similarities recovery", "higher"),
            "cosine_to_baseline": Row("mean cosine to the baseline's vectors", "higher"),
            "rouge_l": Row("ROUGE-L", "higher", remark=True, hub="rouge"),
            "rouge_l_difference": Row("ROUGE-L difference", "higher"),
            "rouge_l_recovery": Row("ROUGE-L recovery", "higher"),
            "chrf": Row("chrF", "higher", remark=True, hub="chrf"),
            "chrf_difference": Row("chrF difference", "higher"),
            "chrf_recovery": Row("chrF recovery", "higher"),
            "target_perplexity": Row("perplexity of targets", "lower", against="ratio", remark=True, hub="perplexity"),
            "target_perplexity_ratio": Row("perplexity of targets ratio", "lower"),
            "masked_perplexity": Row("perplexity of hidden tokens", "lower", against="ratio", remark=True, hub="perplexity"),
            "masked_perplexity_ratio": Row("perplexity of hidden tokens ratio", "lower"),
            "masked_token_accuracy": Row("hidden-token accuracy", "higher", remark=True, hub="accuracy"),
            "masked_token_accuracy_difference": Row("hidden-token accuracy difference", "higher"),
            "masked_token_accuracy_recovery": Row("hidden-token accuracy recovery", "higher"),
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
