"""What a recipe would do: every check and every expected number that can be had without training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.blueprint import blueprint
from hf_shrink.caching import cache_outlook, words_that_count
from hf_shrink.data.format import Collator
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.data.tokenize import TokenizedSplits, check_fit, tokenize
from hf_shrink.distillation.fitting import planned_stages
from hf_shrink.distillation.samples import check_room as check_sample_room
from hf_shrink.measurement.attribution import check_installed as check_captum
from hf_shrink.measurement.energy import check_energy
from hf_shrink.measurement.gate import gate_words
from hf_shrink.measurement.harness_tasks import check_tasks
from hf_shrink.measurement.inputs import check_lengths, longest
from hf_shrink.models.load import load_tokenizer
from hf_shrink.models.pairs import Pair
from hf_shrink.models.student import layers_left
from hf_shrink.onnx_model import FOLDER
from hf_shrink.pruning.budget import check_reach
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cut_words, outline_cuts
from hf_shrink.pruning.oneshot import check_targets_of
from hf_shrink.pruning.pruner import Pruner, check_during
from hf_shrink.pruning.renumbered import refuse_numbers
from hf_shrink.pruning.touched import outline, touched
from hf_shrink.pruning.vocabulary import cut_vocabulary
from hf_shrink.quantization.bitsandbytes import library
from hf_shrink.quantization.config import QuantizationConfig, entry_for
from hf_shrink.quantization.embeddings import expect_training
from hf_shrink.quantization.mixed import expected_bytes
from hf_shrink.quantization.onnx_graph import check_installed, check_room, signature_of
from hf_shrink.quantization.onnx_size import onnx_bytes
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import existing_quantization
from hf_shrink.quantization.size import predicted_bytes
from hf_shrink.recipe import Recipe
from hf_shrink.recovery_plan import recovered
from hf_shrink.sources import refuse_own_sources
from hf_shrink.stage_plan import Plan, StagePlan
from hf_shrink.teaching import Taught, check_teachers, refuse_smaller, rows_of_both, teachers_of
from hf_shrink.tracking import check_trackers
from hf_shrink.trained import refuse_unlearnt
from hf_shrink.training.arguments import check_optimizer, optimizer_steps, training_arguments
from hf_shrink.training.freeze import freeze
from hf_shrink.training.outlook import check_optimization
from hf_shrink.vocabulary import tokens_to_keep
from hf_shrink.words import (
    before_words,
    distillation_words,
    layers_words,
    onnx_words,
    optimization_words,
    pruning_words,
    quantization_words,
    report_words,
    stage_words,
)

_UNUSED = Path("unused")


@dataclass(frozen=True)
class Prepared:
    """What the checks leave for the run; nothing in it has been trained.

    Attributes:
        pairs: how to read each teacher for the student.
        kept_tokens: ids that a smaller vocabulary keeps; None where it stays.
        words: how many of the vocabulary a cache is about; None without one.
        both: the student's training rows with those of a teacher that has another tokenizer, and their collator; else None.
    """

    plan: Plan
    splits: Splits
    tokens: TokenizedSplits
    tokenizer: PreTrainedTokenizerBase
    pairs: tuple[Pair, ...]
    kept_tokens: tuple[int, ...] | None = None
    words: int | None = None
    both: tuple[Dataset, Collator] | None = None


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe, from local files and the cache alone.

    Raises:
        ResourceError: something is not here; the message names it.
        ShrinkError: whatever else would stop the run and can be seen now.
    """
    return prepare(recipe, download=False).plan


def prepare(recipe: Recipe, *, download: bool) -> Prepared:
    """Check a recipe against its data and models before anything is trained; errors as in ``make_plan``."""
    refuse_own_sources(recipe)
    check_trackers(recipe)
    if recipe.measurement.explained is not None:
        check_captum()
    if recipe.measurement.energy is not None:
        check_energy(recipe.measurement.energy)
    splits = load_splits(recipe.data, recipe.task, download=download)
    reference, revision = start_of(recipe)
    tokenizer = load_tokenizer(reference, revision=revision, download=download)
    sizes = recipe.student.config if recipe.student.start == "scratch" else None
    start = blueprint(recipe.task, reference, revision, splits.label_names, download, sizes)
    tokens = tokenize(splits, tokenizer, recipe.data.max_length)
    check_fit(tokens, *_limits(start))
    steps = _steps(recipe.training, recipe.seed, len(tokens.train), "training")
    teachers, stages = teachers_of(recipe, splits, start, tokenizer, download=download), _floor(recipe, splits)
    both = rows_of_both(recipe, splits, teachers[0], tokenizer) if teachers else None
    for each in teachers if both is None else ():
        check_fit(tokens, *_limits(each.model), "the teacher")
    for model in (start, *(each.model for each in teachers[:1])):  # the first teacher is measured
        check_lengths(recipe.measurement, model)
    if teachers:
        stages.append(_teacher(recipe, len(tokens.train), teachers))
    pruning = recipe.effective_pruning()
    student = layers_left(start, recipe.student)
    fewer = bool(recipe.student.config) or student.num_parameters() < start.num_parameters()
    refuse_unlearnt(recipe, start)
    refuse_numbers(student, pruning)
    cuts = cut_words(student, pruning)
    student = outline_cuts(student, pruning)
    check_reach(student, pruning)
    if before := [entry for entry in pruning if entry.when == "before"]:
        check_targets_of(student, before)
        cuts += before_words(before, touched(student, before))
        student = outline(student, before)
    words = None
    if recipe.distillation is not None:
        check_teachers(recipe, teachers, student, tokenizer)
        if recipe.distillation.on_policy is not None:
            check_sample_room(tokens.train["labels"], recipe.distillation.on_policy, _limits(student)[1])
        if recipe.cache is not None:
            answering = [each.model for each in teachers]
            words = words_that_count(recipe, student, answering, tokenizer)
            holds, size = cache_outlook(recipe, splits, tokens.train, tokenizer, answering, words)
            stages.append(StagePlan("cache", (holds,), {}, None, size, recipe.cache.folder))
    stages.append(_student(recipe, start, student, steps, cuts, teachers))
    kept_tokens = None
    if any(entry.is_cut_after for entry in pruning):
        during = [entry for entry in pruning if entry.follows_training]
        does = ["takes the masked units out"] if any(entry.is_cut_after for entry in during) else []
        student = outline(student, during)
        kept_tokens = tokens_to_keep(recipe, splits, tokenizer, student)
        if kept_tokens is not None:
            does.append(f"keeps {len(kept_tokens):,} of {student.config.vocab_size:,} tokens: those of the training texts")
            student = cut_vocabulary(student, kept_tokens)
        stages.append(_model_stage("shrunk", tuple(does), {}, student, "stages/shrunk"))
    if recipe.distillation is not None:
        refuse_smaller(recipe, student, teachers)
    if (stored := entry_for("bitsandbytes", recipe.quantization)) is not None:
        if stored.bits != 16:
            library()
        kept = keep_plan(student, stored)
        does = [quantization_words(stored, len(kept.quantized))]
        file = expected_bytes(student, stored) if stored.bits == "auto" else predicted_bytes(student, stored)
        place = "." if recipe.recovery is None else "stages/quantized"
        stages.append(StagePlan("quantized", tuple(does), dict(kept.kept), student.num_parameters(), file, place))
    if recipe.recovery is not None:
        stages.append(recovered(recipe, student, stages[-1], len(tokens.train)))
    if (graph := entry_for("onnx", recipe.quantization)) is not None:
        stages.append(_onnx(student, graph))
    gate: tuple[str, ...] = ()
    if recipe.gate is not None:
        gate = gate_words(
            recipe.gate, recipe.task, splits.label_names, [stage.name for stage in stages], kept_tokens is not None
        )
    if recipe.measurement.lm_eval is not None:
        check_tasks(recipe.measurement.lm_eval, download=download)
    stages.append(_report(recipe, f"{len(tokens.test):,} {splits.format.unit}", gate))
    warnings = (*_warnings(recipe, fewer), *splits.format.notes(tokenizer))
    pairs = tuple(each.pair for each in teachers)
    plan = Plan(recipe.output_dir, tuple(stages), warnings)
    return Prepared(plan, splits, tokens, tokenizer, pairs, kept_tokens, words, both)


def _onnx(student: PreTrainedModel, config: QuantizationConfig) -> StagePlan:
    check_installed()
    signature_of(student)
    check_room(student)
    kept = keep_plan(student, config)
    does = (onnx_words(config, len(kept.quantized)),)
    return StagePlan("onnx", does, dict(kept.kept), student.num_parameters(), onnx_bytes(student, config), FOLDER)


def start_of(recipe: Recipe) -> tuple[str, str | None]:
    """Reference and revision of the weights that the student starts from."""
    if recipe.student.start == "teacher":
        teacher, *_ = recipe.teachers  # the recipe has checked that there is one
        return teacher.model, teacher.revision
    return recipe.model, recipe.revision


def _limits(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """How many tokens a model knows, and how many it takes at once."""
    config = model.config
    return getattr(config, "vocab_size", None), longest(model) or getattr(config, "max_position_embeddings", None)


def _steps(words: dict[str, Any], seed: int, rows: int, where: str) -> int:
    arguments = training_arguments(words, output_dir=_UNUSED, seed=seed, where=where)
    steps = optimizer_steps(arguments, rows)
    check_optimizer(arguments, steps, where)
    return steps


def _floor(recipe: Recipe, splits: Splits) -> list[StagePlan]:
    if recipe.measurement.floor is None:
        return []
    does = (f"TF-IDF and logistic regression on {len(splits.train):,} texts",)
    return [StagePlan("floor", does, {}, None, None, "")]


def _model_stage(name: str, does: tuple[str, ...], leaves: dict[str, str], model: PreTrainedModel, writes: str) -> StagePlan:
    return StagePlan(name, does, leaves, model.num_parameters(), predicted_bytes(model, None), writes)


def _frozen(model: PreTrainedModel, modules: tuple[str, ...], where: str) -> dict[str, str]:
    return dict.fromkeys(freeze(model, modules, where), "frozen")


def _teacher(recipe: Recipe, rows: int, teachers: Sequence[Taught]) -> StagePlan:
    config, (first, *others) = recipe.teachers[0], teachers
    notes = tuple(note for each in teachers for note in each.pair.notes)
    notes += tuple(f"{t.model} teaches in {t.bits} bits and is measured in float" for t in recipe.teachers if t.bits)
    if config.training is None:
        names = " and ".join(each.model for each in recipe.teachers)
        together = "" if not others else f", by {(recipe.distillation and recipe.distillation.combine) or 'mean'}"
        how = "they are" if others else "it is"
        stage = _model_stage("teacher", (f"takes {names} as {how}{together}", *notes), {}, first.model, "")
        return stage if existing_quantization(first.model) is None else dataclasses.replace(stage, bytes=None)
    steps = _steps(config.training, recipe.seed, rows, "teacher.training")
    does = (f"fine-tunes {config.model} for {steps} steps", *notes)
    leaves = _frozen(first.model, config.freeze, "teacher.freeze")
    expect_training(first.model)
    return _model_stage("teacher", does, leaves, first.model, "stages/teacher")


def _check_training(student: PreTrainedModel, pruning: Sequence[PruningConfig], steps: int) -> None:
    """Whatever the trainer's pruner would refuse, before a teacher is trained."""
    during = [entry for entry in pruning if entry.follows_training]
    check_during(during)
    held = [entry.held() for entry in pruning if entry.when == "before" and not entry.makes_smaller]
    if during or held:
        Pruner(student, [*during, *held], steps)


def _student(
    recipe: Recipe,
    start: PreTrainedModel,
    student: PreTrainedModel,
    steps: int,
    cuts: Sequence[str],
    teachers: Sequence[Taught],
) -> StagePlan:
    does = [layers_words(recipe, start), *cuts, f"trains for {steps} steps", *distillation_words(recipe.distillation)]
    leaves = _frozen(student, recipe.optimization.freeze, "optimization.freeze")
    expect_training(student)
    learns = planned_stages(recipe.distillation, student, teachers[0].model) if recipe.distillation is not None else ()
    check_optimization(recipe.optimization, learns, student, recipe.effective_pruning(), steps)
    does += [*stage_words(learns), *optimization_words(recipe.optimization, student)]
    _check_training(student, recipe.effective_pruning(), steps)
    during = [entry for entry in recipe.effective_pruning() if entry.follows_training]
    if during:
        prunes = touched(student, during, steps)
        does += [*pruning_words(during, prunes, steps)]
        if prunes.zeros:
            does.append(f"sets {prunes.zeros:,} weights to zero, which makes neither the file smaller nor the model faster")
        leaves |= dict.fromkeys(prunes.skipped, "not pruned")
    return _model_stage("student", tuple(does), leaves, student, "stages/student")


def _warnings(recipe: Recipe, fewer: bool) -> tuple[str, ...]:
    """What a recipe that only reads well would leave its user to find out; ``fewer``: the student starts with fewer weights."""
    leave = {entry.structure for entry in recipe.pruning if entry.makes_smaller and entry.fraction != 0}
    if entry_for("onnx", recipe.quantization) or fewer or leave - {"vocabulary"}:
        return ()
    found = ["nothing in this recipe makes the model faster: zeros and fewer tokens take the same time, and so do fewer bits"]
    found[0] += " on most CPUs" if recipe.quantization is not None else ""
    if recipe.quantization is None and not leave:
        found.append("nothing in this recipe makes the file smaller")
    return tuple(found)


def _report(recipe: Recipe, judged: str, gate: tuple[str, ...]) -> StagePlan:
    writes = "config.json, model.safetensors, tokenizer, README.md, hf_shrink_report.json, hf_shrink_recipe.yaml"
    return StagePlan("report", report_words(recipe, judged, gate), {}, None, None, writes)
