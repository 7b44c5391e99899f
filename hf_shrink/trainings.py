"""The stages of a run in which something is taught: the teacher, its answers, the student."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel, PrinterCallback, set_seed

from hf_shrink.job import (
    Job,
    calibration_batches,
    fractions_of,
    measured_fractions,
    start_student,
    whom_to_ask,
    write_answers,
)
from hf_shrink.loading.save import save
from hf_shrink.measurement.energy import metered
from hf_shrink.models.load import load_for
from hf_shrink.pruning.oneshot import needs_data, prune
from hf_shrink.quiet import say
from hf_shrink.ranks import agree, is_leader
from hf_shrink.tracking import keep_logs
from hf_shrink.training.arguments import training_arguments
from hf_shrink.training.freeze import freeze
from hf_shrink.training.store import checkpoints
from hf_shrink.training.teachers import AnyTeacher
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.workspace import Follower

MASKS = "masks/masks.safetensors"  # below the stage's folder: beside the weights it would be counted as weights


def train_teacher(job: Job) -> Path | None:
    """The folder of the fine-tuned teacher, or None where there is no teacher or it comes as it is."""
    config = job.recipe.teachers[0] if job.recipe.teachers else None
    if config is None or config.training is None:
        return None
    folder = job.work.stage_folder("teacher")

    def write(fresh: Path) -> dict[str, Any]:
        assert config is not None and config.training is not None
        if job.recipe.student.start == "model":  # what the student cannot start from, or says too little to share out by,
            set_seed(job.recipe.seed)  # is found before the teacher is trained
            measured_fractions(job, start_student(job, None))
        set_seed(job.recipe.seed)
        names = job.prepared.splits.label_names
        model = load_for(job.recipe.task, config.model, label_names=names, revision=config.revision, new_head=True)
        freeze(model, config.freeze, "teacher.freeze")
        return _train(job, model, config.training, "teacher", fresh)

    _together(job.work, "teacher", write)
    return folder


def keep_answers(job: Job, teacher: Path | None) -> None:
    """What the teacher says about the training rows, in a folder of its own, where the recipe asks for it."""
    if job.recipe.cache is not None:
        say("cache: begins")
        write_answers(job, teacher)


def train_student(job: Job, teacher: Path | None) -> Path:
    """The folder of the trained student: dense in shape, its masks beside it."""
    recipe = job.recipe

    def write(fresh: Path) -> dict[str, Any]:
        set_seed(recipe.seed)
        model = start_student(job, teacher)
        fractions = measured_fractions(job, model)
        if before := [entry for entry in recipe.effective_pruning() if entry.when == "before"]:
            calibration = calibration_batches(job) if any(map(needs_data, before)) else None
            model = prune(model, before, calibration, fractions_of(fractions, model, before))
        asked = whom_to_ask(job, teacher)
        return _train(job, model, recipe.training, "student", fresh, teacher=asked, fractions=fractions)

    _together(job.work, "student", write)
    return job.work.stage_folder("student")


def _train(
    job: Job,
    model: PreTrainedModel,
    words: dict[str, Any],
    stage: str,
    fresh: Path,
    *,
    teacher: AnyTeacher | None = None,
    fractions: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Train, save the weights and the masks, and say how long it took."""
    scratch, is_student = job.work.scratch(stage), stage == "student"
    entries = job.recipe.effective_pruning() if is_student else ()
    masked = [entry for entry in entries if entry.follows_training]
    masked += [entry.held() for entry in entries if entry.when == "before" and not entry.makes_smaller]
    rows, collator = job.tokens.train, job.prepared.splits.format.collator(job.prepared.tokenizer)
    if is_student and job.prepared.both is not None:
        rows, collator = job.prepared.both
    trainer = ShrinkTrainer(
        model,
        training_arguments(words, output_dir=scratch, seed=job.recipe.seed, where=stage),
        collator,
        rows,
        job.tokens.validation,
        job.prepared.tokenizer,
        teacher=teacher,
        distillation=job.recipe.distillation if is_student else None,
        pruning=masked or None,
        pruning_fractions=fractions_of(fractions or {}, model, masked),
        optimization=job.recipe.optimization if is_student else None,
    )
    keep_logs(trainer, job.work, stage)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for the result
    began = time.monotonic()
    with metered(job.recipe.measurement.energy if is_leader() else None, scratch) as spent:
        trainer.train(resume_from_checkpoint=True if checkpoints(scratch) else None)
    if is_leader():
        save(trainer.student, fresh, tokenizer=job.prepared.tokenizer)
        if trainer.pruner is not None:
            (fresh / MASKS).parent.mkdir()
            save_file({name: mask.cpu() for name, mask in trainer.pruner.masks().items()}, fresh / MASKS)
    return {"seconds": round(time.monotonic() - began, 1), "steps": trainer.state.global_step, **spent}


def _together(work: Follower, stage: str, write: Callable[[Path], dict[str, Any]]) -> None:
    """A stage that all processes train in: they agree whether it runs, and wait until its files are in place."""
    if agree(work.result(stage) is not None):
        say(f"{stage}: done before")
        return
    say(f"{stage}: begins")
    work.write_stage(stage, write)
    agree(None)
