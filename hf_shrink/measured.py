"""Every stage of a run measured side by side, once: what comes later reads the numbers."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_shrink.answers import by_name, order_by_name
from hf_shrink.data.tokenize import TokenizedSplits
from hf_shrink.disturbed import rewritten
from hf_shrink.measurement.energy import measurements
from hf_shrink.measurement.environment import environment
from hf_shrink.measurement.floor import FLOOR_TITLE, floor
from hf_shrink.measurement.harness_folder import digest
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.subjects import Subject
from hf_shrink.measurement.values import Report
from hf_shrink.models.reference import local_folder
from hf_shrink.onnx_model import FOLDER
from hf_shrink.plan import Prepared
from hf_shrink.quiet import say
from hf_shrink.recipe import Recipe
from hf_shrink.vocabulary import answers_in_own_words, own_tokenizer
from hf_shrink.workspace import ORDER, Workspace

MEASURED = "measured"
TRAINED = frozenset({"teacher", "student", "recovered"})
_FILE = "measurements.json"
_TASKS = "lm_eval tasks"
_TITLES = {
    "floor": FLOOR_TITLE,
    "teacher": "teacher",
    "student": "student",
    "shrunk": "shrunk",
    "quantized": "quantized",
    "recovered": "recovered",
    "onnx": "ONNX Runtime, int8",
}


@dataclass(frozen=True)
class Measured:
    """The numbers of all stages.

    Attributes:
        reports: one a stage, in order.
        baseline: index of the one that the others are set against.
        environment: versions and machine, when they were measured.
        seconds: that it took.
    """

    reports: tuple[Report, ...]
    baseline: int
    environment: dict[str, Any]
    seconds: float


def forget_other_tasks(recipe: Recipe, work: Workspace) -> None:
    """What was measured by lm-eval tasks of a folder that has changed since is to be measured anew."""
    known = work.result(MEASURED)
    if known is not None and known.get(_TASKS) != _asked(recipe).get(_TASKS):
        work.forget(ORDER[ORDER.index(MEASURED) :])


def _asked(recipe: Recipe) -> dict[str, str]:
    """The digest of the user's own tasks, where there are any."""
    config = recipe.measurement.lm_eval
    return {} if config is None or config.folder is None else {_TASKS: digest(Path(config.folder))}


def measure_stages(recipe: Recipe, prepared: Prepared, tokens: TokenizedSplits, work: Workspace) -> Measured:
    """Measure every stage, or read what was measured before."""

    def write(fresh: Path) -> dict[str, Any]:
        began = time.monotonic()
        subjects = _subjects(recipe, prepared, tokens, work)
        names = [subject.name for subject in subjects]
        baseline = names.index("teacher") if "teacher" in names else names.index("student")
        reports = measure_all(
            subjects,
            dataset=tokens.test,
            tokenizer=prepared.tokenizer,
            config=recipe.measurement,
            baseline=baseline,
            rewritten=rewritten(recipe, prepared.splits),
        )
        found = {
            "stages": [report.to_stage() for report in reports],
            "baseline": baseline,
            "environment": environment(),
            "seconds": round(time.monotonic() - began, 1),
        }
        (fresh / _FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return _asked(recipe)

    if work.result(MEASURED) is None:
        say(f"{MEASURED}: begins")
        work.write_stage(MEASURED, write)
    found = json.loads((work.stage_folder(MEASURED) / _FILE).read_text(encoding="utf-8"))
    reports = tuple(Report.from_stage(stage) for stage in found.pop("stages"))
    return Measured(reports, **found)


def _subjects(recipe: Recipe, prepared: Prepared, tokens: TokenizedSplits, work: Workspace) -> list[Subject]:
    """One for each stage that made something, in order; the last model of torch is the artefact itself."""
    found = []
    names, batch_size = prepared.splits.label_names, max(recipe.measurement.batch_sizes)
    for stage in prepared.plan.stages:
        if stage.name == "floor":
            assert recipe.measurement.floor is not None
            predictions = floor(recipe.measurement.floor, prepared.splits.train, prepared.splits.test)
            found.append(Subject("floor", _TITLES["floor"], stage.does, predictions=predictions))
        elif stage.name not in ("cache", "report"):
            folder, answers, order, own = _folder(recipe, stage.name, work), None, None, None
            if prepared.kept_tokens is not None and stage.name in ("shrunk", "quantized", "recovered", FOLDER):
                stored = stage.writes == "."  # the artefact itself
                place = work.folder if stored else folder
                answers = answers_in_own_words(place, prepared.splits, recipe.data.max_length, batch_size=batch_size)
                own = own_tokenizer(place)
            if stage.name == "teacher":  # one that is taken as it comes may have its classes in another order
                answers = by_name(folder, names, tokens.test, prepared.tokenizer, batch_size=batch_size)
                order = order_by_name(folder, names)
                if prepared.both is not None:
                    answers = answers_in_own_words(folder, prepared.splits, recipe.data.max_length, batch_size=batch_size)
                    own = own_tokenizer(folder)
            did = _did(stage.name, stage.does, work)
            subject = Subject(stage.name, _TITLES[stage.name], did, folder=folder, predictions=answers)
            found.append(dataclasses.replace(subject, order=order, tokenizer=own, **_spent(recipe, stage.name, work)))
    last = next(i for i in reversed(range(len(found))) if found[i].name != FOLDER)
    found[last] = dataclasses.replace(found[last], folder=work.folder)
    return found


def _spent(recipe: Recipe, stage: str, work: Workspace) -> dict[str, Any]:
    """What the stage's training took; said where it was to be measured and was not."""
    trained = (work.result(stage) or {}) if stage in TRAINED else {}
    if recipe.measurement.energy is None or not trained.get("steps"):
        return {}
    if spent := measurements(trained.get("energy")):
        return {"spent": spent}
    return {"notes": ("energy of its training: not known; it was trained before measurement.energy was set",)}


def _did(stage: str, does: tuple[str, ...], work: Workspace) -> tuple[str, ...]:
    """The plan's sentences, and the time that the stage took where it trained."""
    took = (work.result(stage) or {}) if stage in TRAINED else {}
    return (*does, f"took {took['seconds']:g} s for {took['steps']} steps") if took.get("steps") else does


def _folder(recipe: Recipe, stage: str, work: Workspace) -> Path:
    if stage == "teacher" and recipe.teachers[0].training is None:
        return local_folder(recipe.teachers[0].model, recipe.teachers[0].revision)
    return work.folder / FOLDER if stage == FOLDER else work.stage_folder(stage)
