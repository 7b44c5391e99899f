"""Trackers that `report_to` names: refused before a run where they would fail, told at its end what each stage measured."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils
from transformers.utils import logging

from hf_shrink.errors import ResourceError
from hf_shrink.lines import first_line
from hf_shrink.recipe import Recipe
from hf_shrink.tables import pick
from hf_shrink.training.arguments import training_arguments
from hf_shrink.training_words import trackers
from hf_shrink.workspace import Follower, Workspace

TRACKED = "tracked"
_PREFIX = "eval_"
"""Trackers that group their charts put what begins so beside the Trainer's own evaluations."""

logger = logging.get_logger(__name__)


def check_trackers(recipe: Recipe) -> None:
    """Refuse trackers that a training, or the end of the run, would stumble over.

    Raises:
        RecipeError: transformers knows no such tracker.
        ResourceError: its package is not installed.
    """
    sections: dict[str, Mapping[str, Any] | None] = {"training": recipe.training}
    if recipe.teachers:
        sections["teacher.training"] = recipe.teachers[0].training
    if recipe.recovery is not None:
        sections["recovery.training"] = recipe.recovery.training
    for where, words in sections.items():
        for name in trackers(words or {}):
            kind = pick(integration_utils.INTEGRATION_TO_CALLBACK, name, f"{where}.report_to")
            try:
                kind()  # as the Trainer will
            except Exception as error:  # of any tracker's own kind
                raise ResourceError(
                    f"{where}.report_to: {name} cannot be used: {first_line(error)}\nInstall it, or leave {name} out."
                ) from None


def keep_logs(trainer: Trainer, work: Follower, stage: str) -> None:
    """Let the files of a training's trackers outlive its checkpoints, among which transformers would put them."""
    for callback in trainer.callback_handler.callbacks:
        _place(callback, work, stage)


def tell_trackers(recipe: Recipe, work: Workspace, report: Mapping[str, Any]) -> None:
    """Tell each tracker of `training.report_to`, once, what every stage measured; one that fails is named and asked next time.

    Args:
        recipe: names them.
        work: notes who has been told; a new report is told again.
        report: the contents of ``hf_shrink_report.json``.
    """
    told = list((work.result(TRACKED) or {}).get("told", []))
    for name in trackers(recipe.training):
        if name not in told and _tells(name, recipe, work, report):
            told.append(name)
            work.write_artefact(TRACKED, lambda fresh: {"told": list(told)}, reaches=())


def summaries(report: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """The numbers of each stage, as ``{"eval_student/latency_p50/batch_1": milliseconds}``; units stand in the report.

    Of several numbers with one name, the part of their setting that tells them apart is added. ``gate_held`` is 1 or 0.
    """
    held = {stage["name"]: float(stage["held"]) for stage in (report.get("gate") or {}).get("stages", ())}
    for stage in (*report["stages"], *report.get("dropped", ())):
        found = {}
        for own in stage["measurements"]:
            alike = [other["setting"].split(", ") for other in stage["measurements"] if other["name"] == own["name"]]
            parts = [part for part in own["setting"].split(", ") if not all(part in other for other in alike)]
            found["/".join(map(_word, [own["name"], *parts]))] = float(own["value"])
        if stage["name"] in held:
            found["gate_held"] = held[stage["name"]]
        yield {f"{_PREFIX}{stage['name']}/{name}": value for name, value in found.items()}


def _tells(name: str, recipe: Recipe, work: Workspace, report: Mapping[str, Any]) -> bool:
    """Whether the tracker took it; it must not cost the run that it did not."""
    args = training_arguments(recipe.training, output_dir=work.folder, seed=recipe.seed, where="training")
    try:
        [kind] = integration_utils.get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]
        tracker = kind()
        _place(tracker, work, "summary")
        _tell(tracker, args, report)
    except Exception as error:  # of any tracker's own kind
        logger.warning(
            "%s was not told what the stages measured: %s Every number is in the report; run again to try again.",
            name,
            first_line(error).rstrip(".") + ".",
        )
        return False
    return True


def _tell(tracker: TrainerCallback, args: TrainingArguments, report: Mapping[str, Any]) -> None:
    """Set up, one log a stage at the step of its place in the run, closed."""
    state, control = TrainerState(), TrainerControl()
    context: dict[str, Any] = {"model": None, "processing_class": None}
    tracker.on_init_end(args, state, control, **context)
    tracker.on_train_begin(args, state, control, **context)
    try:
        for step, numbers in enumerate(summaries(report)):
            state.global_step = step
            tracker.on_log(args, state, control, logs=numbers, **context)
    finally:
        tracker.on_train_end(args, state, control, **context)


def _place(callback: TrainerCallback, work: Follower, what: str) -> None:
    """TensorBoard's files go below ``stages/tracked``, each part of a run for itself, unless the environment says where."""
    if isinstance(callback, integration_utils.TensorBoardCallback) and callback.logging_dir is None:
        callback.logging_dir = str(Path(work.stage_folder(TRACKED), what, time.strftime("%Y%m%d-%H%M%S")))


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
