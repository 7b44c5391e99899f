"""What the stages of one run have in common: where the student starts, what it is calibrated on, whom it learns from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.caching import cache_key, settings, temperatures
from hf_shrink.data.tokenize import TokenizedSplits
from hf_shrink.distillation.autocast import autocast_of
from hf_shrink.distillation.cache_writing import write_cache
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.files import write_text
from hf_shrink.models.load import config_of, load_for, set_padding
from hf_shrink.models.scratch import from_scratch, resized
from hf_shrink.models.student import layers_left
from hf_shrink.plan import Prepared, start_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cut_at_once, reads_data
from hf_shrink.pruning.structures import groups_of
from hf_shrink.quantization.config import entry_for
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize, quantize_by_budget
from hf_shrink.quiet import say
from hf_shrink.ranks import agree, is_leader
from hf_shrink.recipe import Recipe
from hf_shrink.samples import ROWS, batches_of
from hf_shrink.sensitivity import fractions_for
from hf_shrink.tasks import TASKS
from hf_shrink.teaching import as_taught
from hf_shrink.training.arguments import training_arguments
from hf_shrink.workspace import Follower


@dataclass(frozen=True)
class Job:
    """What every stage needs."""

    recipe: Recipe
    prepared: Prepared
    tokens: TokenizedSplits
    work: Follower


def start_student(job: Job, teacher: Path | None) -> PreTrainedModel:
    """The student before training, without what its config removes at once; ``teacher`` is the folder of a trained one."""
    recipe = job.recipe
    if recipe.student.start == "teacher" and teacher is not None:
        model = load_for(recipe.task, str(teacher), new_head=False)
    elif recipe.student.start == "scratch":
        names = job.prepared.splits.label_names
        config = config_of(recipe.model, task=recipe.task, revision=recipe.revision, label_names=names, download=True)
        set_padding(config, TASKS[recipe.task])
        model = from_scratch(recipe.task, resized(config, recipe.student.config))
    else:
        reference, revision = start_of(recipe)
        names = job.prepared.splits.label_names
        model = load_for(recipe.task, reference, label_names=names, revision=revision, new_head=True)
    entries = recipe.effective_pruning()
    calibration = calibration_batches(job) if recipe.student.reconstruct or any(map(reads_data, entries)) else None
    return cut_at_once(layers_left(model, recipe.student, calibration), entries, calibration)


def measured_fractions(job: Job, model: PreTrainedModel) -> dict[str, float]:
    """What each mask loses by sensitivity: measured once, and the same where a run goes on; a clock never says it twice."""
    path = job.work.scratch("student") / "fractions.json"
    known: dict[str, float] | None = agree(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    if known is None:
        known = fractions_for(job.recipe, model, job.tokens, job.prepared.tokenizer)
        if known and is_leader():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(known))
    return known


def fractions_of(fractions: Mapping[str, float], model: Any, entries: Sequence[PruningConfig]) -> dict[str, float] | None:
    """The fractions of the masks that ``entries`` share out; None where they share out none."""
    names = {g.name for g in groups_of(model, entries) if g.config.allocation == "sensitivity"}
    return {name: fractions[name] for name in names} or None


def calibration_batches(job: Job, rows: int = ROWS, *, last: bool = False) -> list[dict[str, Tensor]]:
    """The first training rows in batches, at most ``rows`` of them; or the last, which are others where there are enough."""
    return batches_of(job.tokens.train, job.prepared.splits.format.collator(job.prepared.tokenizer), rows, last=last)


def live_teacher(job: Job, folder: Path | None) -> Teacher | Ensemble:
    """All who teach in memory, as one; ``folder`` is that of a teacher trained in this run."""
    recipe = job.recipe
    assert recipe.distillation is not None
    found = []
    for config, pair in zip(recipe.teachers, job.prepared.pairs, strict=True):
        reference, revision = (str(folder), None) if folder is not None else (config.model, config.revision)
        model: Any = load_for(recipe.task, reference, revision=revision, dtype=config.dtype, new_head=False)
        if config.bits is not None:
            model = quantize(model.to(_device(job)), as_taught(config.bits, config.dtype))  # where it is stored, it stays
        found.append(Teacher(model, label_order=pair.label_order))
    if len(found) == 1:
        return found[0]
    kind = TASKS[recipe.task].problem_type
    return Ensemble(found, combine=recipe.distillation.combine or "mean", problem_type=kind)


def whom_to_ask(job: Job, folder: Path | None) -> Teacher | Ensemble | CachedTeacher | None:
    """Whoever teaches in this run: a cache, models in memory, or nobody."""
    if job.recipe.distillation is None:
        return None
    if job.recipe.cache is None:
        return live_teacher(job, folder)
    return CachedTeacher.from_folder(job.recipe.cache.folder, key=_key(job))


def write_answers(job: Job, folder: Path | None) -> None:
    """Write the recipe's cache, or what is missing of it; all processes wait for the leader."""
    if is_leader():
        recipe = job.recipe
        teacher = live_teacher(job, folder).under(autocast_of(recipe.training))
        teacher.to(_device(job))
        write_cache(
            settings(recipe, job.prepared.words),
            teacher,
            job.tokens.train,
            job.prepared.splits.format.collator(job.prepared.tokenizer),
            key=_key(job),
            temperatures=temperatures(recipe),
            words=job.prepared.words,
            progress=lambda done, rows: say(f"cache: {done:,} of {rows:,} rows"),
        )
    agree(None)


def _device(job: Job) -> torch.device:
    recipe = job.recipe
    return training_arguments(recipe.training, output_dir=job.work.folder, seed=recipe.seed, where="training").device


def _key(job: Job) -> dict[str, str]:
    return cache_key(job.recipe, job.prepared.splits, job.prepared.tokenizer)


def stored_student(job: Job, model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    """``model`` as bitsandbytes stores it, where the recipe says so, and for the report what was kept and decided."""
    config = entry_for("bitsandbytes", job.recipe.quantization)
    if config is None:
        return model, {"kept": {}}
    if config.bits == "auto":
        mixed = quantize_by_budget(model, config, calibration_batches(job, rows=config.calibration_rows))
        return mixed.model, {"kept": mixed.plan.in_float, "layer_bits": mixed.plan.to_json()}
    return quantize(model, config), {"kept": dict(keep_plan(model, config).kept)}
