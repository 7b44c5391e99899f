"""What each part of a recipe's student is worth to it, and how much of each may go: both from rows that are no test rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.class_names import labels_of
from hf_shrink.data.format import Collator
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tasks import FORMATS
from hf_shrink.data.tokenize import TokenizedSplits, tokenize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import FAMILIES, stacks_of
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.inputs import random_inputs
from hf_shrink.measurement.speed import WARM_UP, rounds, take_turns, threads
from hf_shrink.measurement.subjects import at_rest, device_of
from hf_shrink.measurement.values import plural
from hf_shrink.models.load import load_tokenizer
from hf_shrink.plan import start_of
from hf_shrink.pruning.budget import spend, tried
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cut_at_once
from hf_shrink.pruning.renumbered import refuse_numbers
from hf_shrink.pruning.sensitivity import FRACTIONS, reads_data, sensitivity, whole_groups
from hf_shrink.pruning.sensitivity_table import Sensitivity, Words
from hf_shrink.publishing.plots import plot_sensitivity
from hf_shrink.ranks import agree
from hf_shrink.recipe import Recipe
from hf_shrink.scoring import LIKELIHOOD, chance, score_on
from hf_shrink.tasks import TASKS
from hf_shrink.trained import trained_start

ROWS = 256
"""Rows that a model is scored on: each mask takes one pass over them for each fraction."""

_BATCH = 32


def measure_sensitivity(
    recipe: Recipe,
    *,
    rows: int = ROWS,
    fractions: Sequence[float] = FRACTIONS,
    latency: bool = False,
    plots: str | Path | None = None,
) -> Sensitivity:
    """Quality that the recipe's student loses with a fraction of each mask, before any training with masks.

    The student is what a run would start from, trained where it can be: the run's finished teacher, or its finished student
    where nothing was pruned from it. Masks are those of the ``pruning`` entries; where there are none, all neurons and heads,
    every whole layer in turn and the hidden width. Quality is the mean log-likelihood of the right class, in nats: minus the
    cross-entropy, that moves with every weight, while accuracy, kept beside it, moves in steps of one row. Of a language model
    it is that of the next token.

    Args:
        recipe: its folder is read, never written.
        rows: at most, drawn by the recipe's seed from the validation split; from training where that is the test split too.
        fractions: of each mask, above 0 and below 1.
        latency: time the smaller models, too, at the first of ``measurement.batch_sizes``.
        plots: folder for ``sensitivity.png`` and ``.svg``; needs matplotlib.

    Raises:
        MismatchError: the start has a new head, so that its quality is chance: run the recipe first.
        ShrinkError: as ``run``, and as ``hf_shrink.pruning.sensitivity.sensitivity``.
    """
    splits = load_splits(recipe.data, recipe.task)
    reference, revision = start_of(recipe)
    tokenizer = load_tokenizer(reference, revision=revision)
    tokens = tokenize(splits, tokenizer, recipe.data.max_length)
    some = _batches(tokens.train.select(range(min(ROWS, len(tokens.train)))), splits.format.collator(tokenizer))
    model, came_from = trained_start(recipe, reference, revision, splits.label_names, some)
    configs = recipe.effective_pruning()
    masked = tuple(entry for entry in configs if not entry.is_cut_at_once)
    if came_from != "student" and masked:
        refuse_numbers(model, configs)
        model = cut_at_once(model, configs, some)
    configs = masked or _everything(model)
    found = _measured(recipe, model, configs, tokens, tokenizer, splits.label_names, rows, fractions, latency=latency)
    notes = [f"measured on {came_from}"]
    if guess := _guessing(found, model, splits.label_names):
        notes.append(f"{guess}: these losses mean little")
    if plots is not None:
        notes += [f"wrote {path.name}" for path in plot_sensitivity(found, plots)]
    return found.noting(*notes)


def fractions_for(
    recipe: Recipe, model: PreTrainedModel, tokens: TokenizedSplits, tokenizer: PreTrainedTokenizerBase, *, rows: int = ROWS
) -> dict[str, float]:
    """What each mask of the entries with ``allocation: sensitivity`` is to lose, by its name; empty where there is none.

    Each entry spends its own budget on its own masks. Measured at half the entry's sparsity, at it, and half-way from it to
    everything, so that no mask loses more than that last fraction. All processes get the leader's answer.

    Args:
        recipe: whose entries these are.
        model: what training with masks would start from, its classes in the order of the data; stays as it is.
        tokens: for rows as in ``measure_sensitivity``.
        tokenizer: pads them.
        rows: at most.

    Raises:
        RecipeError: as ``spend``.
        MismatchError: the model knows hardly more than chance, as with a new head or too few layers left.
        NonFiniteError: as ``sensitivity``.
    """
    configs = recipe.effective_pruning()
    chosen = {f"pruning.{i}": c for i, c in enumerate(configs) if c.allocation == "sensitivity" and not c.is_cut_at_once}
    spent: dict[str, float] = {}
    groups = whole_groups(model, configs) if chosen else ()
    amounts = {entry: config.sparsity for entry, config in chosen.items()}
    asked = {entry: tried(amount) for entry, amount in amounts.items() if amount}
    if asked:
        timed = any(chosen[entry].budget == "latency" for entry in asked)
        names = labels_of(model) if TASKS[recipe.task].labelled else ()
        found = _measured(recipe, model, configs, tokens, tokenizer, names, rows, asked, latency=timed, entries=tuple(asked))
        if guess := _guessing(found, model, names):
            raise MismatchError(
                f"{next(iter(asked))}.allocation: sensitivity: {guess}, so nothing says what its parts are worth.\n"
                "Start from a trained model (student.start: teacher, fewer dropped layers), or use allocation: uniform."
            )
        for entry, (_, amount, _) in asked.items():
            own = [group for group in groups if group.entry == entry]
            spent |= spend(found, own, amount, chosen[entry].budget)
    idle = {group.name: 0.0 for group in groups if group.entry in chosen and group.entry not in asked}
    return agree(spent | idle)


def _measured(
    recipe: Recipe,
    model: PreTrainedModel,
    configs: Sequence[PruningConfig],
    tokens: TokenizedSplits,
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    rows: int,
    fractions: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    latency: bool,
    entries: Sequence[str] | None = None,
) -> Sensitivity:
    data, where = calibration_rows(tokens, rows, recipe.seed)
    groups = [group for group in whole_groups(model, configs) if entries is None or group.entry in entries]
    timer, timed = timer_of(model, recipe.measurement) if latency else (None, "")
    found = sensitivity(
        model,
        configs,
        score_on(data, tokenizer, label_names),
        fractions=fractions,
        calibration=_batches(data, FORMATS[recipe.task](recipe.data).collator(tokenizer)) if reads_data(groups) else None,
        latency=timer,
        entries=entries,
        words=Words(LIKELIHOOD, "nats", where, len(data)),
    )
    return found.timed(timed)


def calibration_rows(tokens: TokenizedSplits, rows: int, seed: int) -> tuple[Dataset, str]:
    """At most ``rows`` rows, the same for the same seed, and where they come from; never one of the test split."""
    if rows < 1:
        raise RecipeError(f"rows: {rows} rows cannot be scored; give 1 or more.")
    same = tokens.test is tokens.validation or tokens.test[:] == tokens.validation[:]
    source, name = (tokens.train, "training") if same else (tokens.validation, "validation")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(source))[:rows])
    return source.select(drawn), f"{name} split of {len(source)} rows, seed {seed}"


def _guessing(found: Sensitivity, model: PreTrainedModel, label_names: Sequence[str]) -> str:
    """Words where the whole model is hardly better than one to which all answers are alike; empty where it is."""
    blind = chance(model, label_names)
    return (
        f"the model knows hardly more than chance ({found.dense:.3f}, chance {blind:.3f} nats)"
        if found.dense < 0.95 * blind
        else ""
    )


def timer_of(model: PreTrainedModel, config: MeasurementConfig) -> tuple[Callable[[PreTrainedModel], float], str]:
    """Milliseconds of a batch, and the setting. A smaller model takes turns with ``model``, and the median of the rounds'
    ratios is set against the time that ``model`` took alone: a slow phase of the machine falls on both."""
    size, length, base = config.batch_sizes[0], config.length, 0.0
    inputs = random_inputs(model, batch_size=size, length=length)

    def latency(candidate: PreTrainedModel) -> float:
        nonlocal base
        with threads(config.threads), at_rest(model), at_rest(candidate):
            if candidate is model:
                seconds = take_turns({0: lambda: model(**inputs)}, runs=config.runs, warm_up=WARM_UP)
                base = 1000 * float(np.median(seconds[0]))
                return base
            calls: dict[int, Callable[[], Any]] = {0: lambda: model(**inputs), 1: lambda: candidate(**inputs)}
            seconds = take_turns(calls, runs=config.runs, warm_up=WARM_UP)
        return base * float(np.median(np.divide(seconds[1], seconds[0])))

    with threads(config.threads) as count:
        where = f"{device_of(model).type}, {plural(count, 'thread')}, batch {size}, {length} tokens"
    return latency, f"{where}, {rounds(config.runs)}"


def _everything(model: PreTrainedModel) -> tuple[PruningConfig, ...]:
    """All neurons, heads, whole layers and the hidden width of a known family, all projections of another.

    No layers where encoder and decoder have not the same number: the same ones leave both.
    """
    family = FAMILIES.get(model.config.model_type)
    alike = family is not None and len({len(layers) for _, layers in stacks_of(model, family)}) == 1
    kinds = ("unstructured",) if family is None else ("ffn", "heads", *(("layers",) if alike else ()), "hidden")
    return tuple(PruningConfig(structure=kind, sparsity=0.5) for kind in kinds)


def _batches(data: Dataset, pad: Collator) -> list[dict[str, Tensor]]:
    """All rows with their labels, padded batch by batch."""
    starts = range(0, len(data), _BATCH)
    return [dict(pad([data[i] for i in range(start, min(start + _BATCH, len(data)))])) for start in starts]
