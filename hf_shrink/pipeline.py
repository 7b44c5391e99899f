"""From a recipe to a smaller model with honest numbers: one call a stage, each skipped where its files still stand."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, set_seed

from hf_shrink.distillation.teacher import Teacher
from hf_shrink.job import Job, calibration_batches, fractions_of, live_teacher, measured_fractions, start_student
from hf_shrink.loading.onnx_export import write_graphs
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.models.load import load_for, load_tokenizer
from hf_shrink.onnx_model import FOLDER
from hf_shrink.plan import prepare
from hf_shrink.pruning.oneshot import needs_data, prune
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.trimming import trim_tokenizer
from hf_shrink.pruning.vocabulary import cut_vocabulary
from hf_shrink.publishing.push import Pushed, push_to
from hf_shrink.publishing.target import Target, preflight
from hf_shrink.quantization.config import entry_for
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize
from hf_shrink.quiet import say
from hf_shrink.ranks import agree, is_leader
from hf_shrink.recipe import Recipe
from hf_shrink.report import fingerprints, write_report
from hf_shrink.resume import open_folder
from hf_shrink.training.arguments import optimizer_steps, training_arguments
from hf_shrink.training.freeze import freeze
from hf_shrink.training.space import check_free, checkpoints_kept
from hf_shrink.training.store import checkpoints
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.workspace import Follower, Workspace

MASKS = "masks/masks.safetensors"  # below the stage's folder: beside the weights it would be counted as weights
FINAL = "final"


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        folder: the artefact: model, tokenizer, card, recipe and report.
        report: the contents of ``hf_shrink_report.json``; empty in processes that only trained along.
        pushed: what ``publishing.push_to`` led to; None without it.
    """

    folder: Path
    report: dict[str, Any]
    pushed: Pushed | None = None

    def to_json(self) -> dict[str, Any]:
        """The report, and what was published."""
        return self.report if self.pushed is None else {**self.report, "pushed": self.pushed.to_json()}

    def comparison(self) -> Comparison:
        """Every stage side by side."""
        return compare([self.folder])

    def rich(self) -> Any:
        """Table and remarks for the terminal."""
        from rich.console import Group

        published = [] if self.pushed is None else [self.pushed.rich()]
        remarks = (f"- {remark}" for remark in self.report["remarks"])
        return Group(self.comparison().rich(), *remarks, f"wrote {self.folder}", *published)


def run(recipe: Recipe, *, overwrite: bool = False, accept_changes: Sequence[str] = ()) -> Outcome:
    """Run a recipe, or go on with it where an earlier call stopped.

    Args:
        recipe: what to do; its ``output_dir`` is where.
        overwrite: start anew in a folder that is in use. Of the files there, only those of an earlier run are removed.
        accept_changes: dotted keys of the recipe that may differ from the run found in the folder.

    Raises:
        ShrinkError: with ``code`` as the exit code of the command line; nothing that was in the folder before is lost.
    """
    work = (
        open_folder(recipe, overwrite=overwrite, accept_changes=accept_changes)
        if is_leader()
        else Follower(Path(recipe.output_dir))
    )
    try:
        agree(None)  # nobody goes on before the leader has looked at the folder
        prepared = prepare(recipe, download=True)
        job = Job(recipe, prepared, prepared.tokens, work)
        _check_room(job)
        target = _target(recipe)
        if isinstance(work, Workspace):
            if target is not None:
                preflight(target)  # hours before there is anything to publish
            work.begin(recipe.model_dump(mode="json", exclude_unset=True), fingerprints(recipe, prepared))
        teacher = _teacher(job)
        student = _student(job, teacher)
        if not isinstance(work, Workspace):
            return Outcome(work.folder, {})
        small = _shrunk(job, work, student)
        _final(job, work, small)
        _onnx(job, work, small)
        report = write_report(recipe, prepared, job.tokens, work)
        return Outcome(work.folder, report, None if target is None else push_to(target, work.folder))
    finally:
        work.close()


def _target(recipe: Recipe) -> Target | None:
    words = recipe.publishing
    if words.push_to is None:
        return None
    return Target(words.push_to, words.public, words.create_pr, words.revision, words.tag)


def _check_room(job: Job) -> None:
    """Refuse a disk that cannot hold the stages to come and, while one of them trains, the weights of its checkpoints.

    That is the least a run takes. Each training asks again for its own checkpoints, with the optimizer's state.
    """
    recipe, stages, checkpoints_at_once = job.recipe, 0, [0]
    trained = {"teacher": recipe.teacher.training if recipe.teacher else None, "student": recipe.training}
    for stage in job.prepared.plan.stages:
        if stage.bytes is None or not stage.writes or job.work.stage_folder(stage.name).exists():
            continue
        stages += stage.bytes
        words = trained.get(stage.name)
        if words is not None:
            args = training_arguments(words, output_dir=job.work.folder, seed=recipe.seed, where=stage.name)
            steps = optimizer_steps(args, len(job.tokens.train))
            kept = checkpoints_kept(args, max_steps=steps, save_steps=args.save_steps)
            checkpoints_at_once.append((kept + 1) * stage.bytes if kept else 0)
    check_free(job.work.folder, stages + max(checkpoints_at_once), "stages and checkpoints")


def _teacher(job: Job) -> Path | None:
    """The folder of the fine-tuned teacher, or None where there is no teacher or it comes as it is."""
    config = job.recipe.teacher
    if config is None or config.training is None:
        return None
    folder = job.work.stage_folder("teacher")

    def write(fresh: Path) -> dict[str, Any]:
        assert config is not None and config.training is not None
        if job.recipe.student.start == "model":
            start_student(job, None)  # weights that the student cannot start from are found before the teacher is trained
        set_seed(job.recipe.seed)
        names = job.prepared.splits.label_names
        model = load_for(job.recipe.task, config.model, label_names=names, revision=config.revision, new_head=True)
        freeze(model, config.freeze, "teacher.freeze")
        return _train(job, model, config.training, "teacher", fresh)

    _together(job.work, "teacher", write)
    return folder


def _student(job: Job, teacher: Path | None) -> Path:
    """The folder of the trained student: dense in shape, its masks beside it."""
    recipe = job.recipe

    def write(fresh: Path) -> dict[str, Any]:
        set_seed(recipe.seed)
        model = start_student(job, teacher)
        fractions = measured_fractions(job, model)
        if before := [entry for entry in recipe.effective_pruning() if entry.when == "before"]:
            calibration = calibration_batches(job) if any(map(needs_data, before)) else None
            model = prune(model, before, calibration, fractions_of(fractions, model, before))
        freeze(model, recipe.optimization.freeze, "optimization.freeze")
        live = live_teacher(job, teacher)
        return _train(job, model, recipe.training, "student", fresh, teacher=live, fractions=fractions)

    _together(job.work, "student", write)
    return job.work.stage_folder("student")


def _train(
    job: Job,
    model: PreTrainedModel,
    words: dict[str, Any],
    stage: str,
    fresh: Path,
    *,
    teacher: Teacher | None = None,
    fractions: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Train, save the weights and the masks, and say how long it took."""
    scratch, is_student = job.work.scratch(stage), stage == "student"
    entries = job.recipe.effective_pruning() if is_student else ()
    masked = [entry for entry in entries if entry.follows_training]
    masked += [entry.held() for entry in entries if entry.when == "before" and not entry.makes_smaller]
    trainer = ShrinkTrainer(
        model,
        training_arguments(words, output_dir=scratch, seed=job.recipe.seed, where=stage),
        job.prepared.splits.format.collator(job.prepared.tokenizer),
        job.tokens.train,
        job.tokens.validation,
        job.prepared.tokenizer,
        teacher=teacher,
        distillation=job.recipe.distillation if is_student else None,
        pruning=masked or None,
        pruning_fractions=fractions_of(fractions or {}, model, masked),
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for the result
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=True if checkpoints(scratch) else None)
    if is_leader():
        save(trainer.student, fresh, tokenizer=job.prepared.tokenizer)
        if trainer.pruner is not None:
            (fresh / MASKS).parent.mkdir()
            save_file({name: mask.cpu() for name, mask in trainer.pruner.masks().items()}, fresh / MASKS)
    return {"seconds": round(time.monotonic() - began, 1), "steps": trainer.state.global_step}


def _shrunk(job: Job, work: Workspace, student: Path) -> Path:
    """The folder of the physically smaller student, or the student's own where nothing can be cut."""
    if not any(entry.is_cut_after for entry in job.recipe.pruning):
        return student

    def write(fresh: Path) -> dict[str, Any]:
        small, tokens = load_for(job.recipe.task, str(student), new_head=False), job.prepared.kept_tokens
        tokenizer: Any = job.prepared.tokenizer
        if (student / MASKS).exists():
            small = shrink(small, load_file(student / MASKS))
        if tokens is not None:
            small, tokenizer = cut_vocabulary(small, tokens), trim_tokenizer(tokenizer, tokens)
        save(small, fresh, tokenizer=tokenizer)
        return {}

    _once(work, "shrunk", write)
    return work.stage_folder("shrunk")


def _final(job: Job, work: Workspace, small: Path) -> None:
    """The artefact in ``output_dir`` itself, loaded again and compared before it is put in place."""

    def write(fresh: Path) -> dict[str, Any]:
        model = load_for(job.recipe.task, str(small), new_head=False)
        kept: Mapping[str, str] = {}
        if (stored := entry_for("bitsandbytes", job.recipe.quantization)) is not None:
            kept = keep_plan(model, stored).kept
            model = quantize(model, stored)
        tokenizer = load_tokenizer(str(small))  # its own: it may know fewer tokens
        tier = save(model, fresh, tokenizer=tokenizer)
        reload = verify(fresh, model, _some_inputs(job, tokenizer))
        return {"tier": tier, "max_difference": reload.max_difference, "kept": dict(kept)}

    if work.result(FINAL) is None:
        say(f"{FINAL}: begins")
        work.write_artefact(FINAL, write)


def _onnx(job: Job, work: Workspace, small: Path) -> None:
    """Graphs for ONNX Runtime of the float model, in the artefact's ``onnx`` folder."""
    config = entry_for("onnx", job.recipe.quantization)
    if config is None or work.result(FOLDER) is not None:
        return

    def write(fresh: Path) -> dict[str, Any]:
        assert config is not None
        batches = calibration_batches(job, rows=config.calibration_rows) if config.mode == "static" else None
        made = write_graphs(load_for(job.recipe.task, str(small), new_head=False), fresh, config, calibration=batches)
        return {name: value for name, value in made.to_json().items() if name != "folder"}

    say(f"{FOLDER}: begins")
    work.write_artefact(FOLDER, write)


def _some_inputs(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A batch of the first test rows without labels, as ``tokenizer`` reads them."""
    splits = job.prepared.splits
    texts = splits.test.select(range(min(8, len(splits.test))))
    rows = splits.format.tokens(texts, tokenizer, job.recipe.data.max_length, "test")
    batch = splits.format.collator(tokenizer)([rows[i] for i in range(min(8, len(rows)))])
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _together(work: Follower, stage: str, write: Callable[[Path], dict[str, Any]]) -> None:
    """A stage that all processes train in: they agree whether it runs, and wait until its files are in place."""
    if agree(work.result(stage) is not None):
        say(f"{stage}: done before")
        return
    say(f"{stage}: begins")
    work.write_stage(stage, write)
    agree(None)


def _once(work: Workspace, stage: str, write: Callable[[Path], dict[str, Any]]) -> None:
    if work.result(stage) is None:
        say(f"{stage}: begins")
        work.write_stage(stage, write)
