"""From a recipe to a smaller model with honest numbers: one call a stage, each skipped where its files still stand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hf_shrink.artefact import make_artefact, settle
from hf_shrink.caching import CacheReport, inspect_cache
from hf_shrink.errors import RecipeError
from hf_shrink.gated import check_quality
from hf_shrink.job import Job
from hf_shrink.loading.save import save
from hf_shrink.markdown import clean
from hf_shrink.measured import forget_other_tasks, measure_stages
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.models.load import load_for
from hf_shrink.pages import write_page
from hf_shrink.plan import prepare
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.trimming import trim_tokenizer
from hf_shrink.pruning.vocabulary import cut_vocabulary
from hf_shrink.publishing.push import Pushed, push_to
from hf_shrink.publishing.readme import check_card
from hf_shrink.publishing.target import Target, preflight
from hf_shrink.publishing.usage import check_rehearsed
from hf_shrink.quiet import say
from hf_shrink.ranks import agree, is_leader
from hf_shrink.recipe import Recipe
from hf_shrink.report import fingerprints, write_report
from hf_shrink.resume import open_folder
from hf_shrink.tracking import tell_trackers
from hf_shrink.training.arguments import optimizer_steps, training_arguments
from hf_shrink.training.space import check_free, checkpoints_kept
from hf_shrink.trainings import MASKS, keep_answers, train_student, train_teacher
from hf_shrink.workspace import Follower, Workspace


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
        from rich.text import Text

        published = [] if self.pushed is None else [self.pushed.rich()]
        dropped = (self.report.get("gate") or {}).get("dropped") or {}
        notes = [f"rolled back: {name}. {why}" for name, why in dropped.items()]
        notes += [f"- {remark}" for remark in self.report["remarks"]]
        lines = (Text(clean(note)) for note in [*notes, f"wrote {self.folder}"])
        return Group(self.comparison().rich(), *lines, *published)


def run(recipe: Recipe, *, overwrite: bool = False, accept_changes: Sequence[str] = ()) -> Outcome:
    """Run a recipe, or go on with it where an earlier call stopped.

    Args:
        recipe: what to do; its ``output_dir`` is where.
        overwrite: start anew in a folder that is in use. Of the files there, only those of an earlier run are removed.
        accept_changes: dotted keys of the recipe that may differ from the run found in the folder.

    Raises:
        ShrinkError: with ``code`` as the exit code of the command line; nothing that was in the folder before is lost.
    """
    with _begun(recipe, overwrite=overwrite, accept_changes=accept_changes) as (job, target):
        work = job.work
        teacher = train_teacher(job)
        if not agree(work.result("student") is not None):
            keep_answers(job, teacher)
        student = train_student(job, teacher)
        if not isinstance(work, Workspace):
            return Outcome(work.folder, {})
        small = _shrunk(job, work, student)
        forget_other_tasks(recipe, work)
        make_artefact(job, work, small)
        measured = measure_stages(recipe, job.prepared, job.tokens, work)
        kept = settle(job, work, small, measured)
        report = write_report(recipe, job.prepared, work, measured, kept, overwrite=overwrite)
        tell_trackers(recipe, work, report)
        write_page(work)
        check_quality(report, str(work.folder))
        check_rehearsed(report["usage"])
        return Outcome(work.folder, report, None if target is None else push_to(target, work.folder))


def build_cache(recipe: Recipe) -> CacheReport:
    """The first part of ``run``: check everything, fine-tune the teacher where the recipe says so, and write its cache.

    What is finished stays, so that ``run`` goes on from here.

    Raises:
        RecipeError: the recipe has no ``cache``. ShrinkError: as ``run``.
    """
    if recipe.cache is None:
        raise RecipeError("cache: the recipe has no such section; add `cache: {folder: ...}`.")
    with _begun(recipe, overwrite=False, accept_changes=()) as (job, _):
        keep_answers(job, train_teacher(job))
    return inspect_cache(recipe.cache.folder)


@contextmanager
def _begun(recipe: Recipe, *, overwrite: bool, accept_changes: Sequence[str]) -> Iterator[tuple[Job, Target | None]]:
    """A run whose folder is claimed and whose recipe has passed every check; the folder is let go at the end."""
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
            if not overwrite and work.result("report") is None:
                check_card(work.folder)  # what somebody wrote into it must not stop the run at its end
            if target is not None:
                preflight(target)  # hours before there is anything to publish
            work.begin(recipe.model_dump(mode="json", exclude_unset=True), fingerprints(recipe, prepared))
        yield job, target
    finally:
        work.close()


def _target(recipe: Recipe) -> Target | None:
    to = recipe.publishing
    return None if to.push_to is None else Target(to.push_to, to.public, to.create_pr, to.revision, to.tag)


def _check_room(job: Job) -> None:
    """Refuse a disk that cannot hold the stages to come and, while one of them trains, the weights of its checkpoints.

    That is the least a run takes. Each training asks again for its own checkpoints, with the optimizer's state.
    """
    recipe, stages, checkpoints_at_once, floats = job.recipe, 0, [0], 0
    trained = {"teacher": recipe.teachers[0].training if recipe.teachers else None, "student": recipe.training}
    if recipe.recovery is not None and recipe.recovery.method == "qat":
        trained["recovered"] = recipe.recovery.training
    for stage in job.prepared.plan.stages:
        if stage.name in ("student", "shrunk"):
            floats = stage.bytes or 0
        if stage.bytes is None or not stage.writes or stage.name == "cache" or job.work.stage_folder(stage.name).exists():
            continue
        stages += stage.bytes
        words = trained.get(stage.name)
        if words is not None:
            args = training_arguments(words, output_dir=job.work.folder, seed=recipe.seed, where=stage.name)
            steps = optimizer_steps(args, len(job.tokens.train))
            kept = checkpoints_kept(args, max_steps=steps, save_steps=args.save_steps)
            weights = floats if stage.name == "recovered" else stage.bytes  # trained in float, stored in fewer bits
            checkpoints_at_once.append((kept + 1) * weights if kept else 0)
    check_free(job.work.folder, stages + max(checkpoints_at_once), "stages and checkpoints")


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


def _once(work: Workspace, stage: str, write: Callable[[Path], dict[str, Any]]) -> None:
    if work.result(stage) is None:
        say(f"{stage}: begins")
        work.write_stage(stage, write)
