"""The last stage: measure everything side by side, and write report, recipe and card into the artefact."""

import dataclasses
import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_shrink.answers import by_name, order_by_name
from hf_shrink.data.tokenize import TokenizedSplits
from hf_shrink.disturbed import rewritten
from hf_shrink.files import sha256
from hf_shrink.measurement.environment import environment
from hf_shrink.measurement.floor import floor
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.remarks import remarks
from hf_shrink.measurement.reports import NAME
from hf_shrink.measurement.subjects import Subject
from hf_shrink.models.load import config_of
from hf_shrink.models.reference import local_folder, resolve
from hf_shrink.onnx_model import FOLDER
from hf_shrink.plan import Prepared
from hf_shrink.publishing.card import render
from hf_shrink.quiet import say
from hf_shrink.recipe import Recipe
from hf_shrink.vocabulary import answers_in_own_words, own_tokenizer
from hf_shrink.workspace import Workspace

RECIPE = "hf_shrink_recipe.yaml"
_TITLES = {
    "floor": "TF-IDF + logistic regression",
    "teacher": "teacher",
    "student": "student",
    "shrunk": "shrunk",
    "quantized": "quantized",
    "onnx": "ONNX Runtime, int8",
}


def fingerprints(recipe: Recipe, prepared: Prepared) -> dict[str, str]:
    """What the run reads, by content: data as loaded, weights by sha256, or by commit where they come from the Hub."""
    found = {name: value for name, value in prepared.splits.source.items() if name.startswith("fingerprint")}
    found["model"] = _weights(recipe.model, recipe.revision)
    for i, each in enumerate(recipe.teachers):
        found["teacher" if i == 0 else f"teacher.{i}"] = _weights(each.model, each.revision)
    return found


def write_report(recipe: Recipe, prepared: Prepared, tokens: TokenizedSplits, work: Workspace) -> dict[str, Any]:
    """Measure every stage, write the three files beside the model, and return the report."""

    def write(fresh: Path) -> dict[str, Any]:
        report = _report(recipe, prepared, tokens, work)
        (fresh / NAME).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (fresh / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        (fresh / "README.md").write_text(render(report), encoding="utf-8")
        return {}

    if work.result("report") is None:
        say("report: measures every stage")
        work.write_artefact("report", write)
    return dict(json.loads((work.folder / NAME).read_text(encoding="utf-8")))


def _report(recipe: Recipe, prepared: Prepared, tokens: TokenizedSplits, work: Workspace) -> dict[str, Any]:
    began = time.monotonic()
    subjects = _subjects(recipe, prepared, tokens, work)
    names = [subject.name for subject in subjects]
    known = rows()
    baseline = names.index("teacher") if "teacher" in names else names.index("student")
    reports = measure_all(
        subjects,
        dataset=tokens.test,
        tokenizer=prepared.tokenizer,
        config=recipe.measurement,
        baseline=baseline,
        rewritten=rewritten(recipe, prepared.splits),
    )
    final: Mapping[str, Any] = work.result("final") or {}
    graphs: Mapping[str, Any] = work.result(FOLDER) or {}
    trained = sum((work.result(stage) or {}).get("seconds", 0.0) for stage in ("teacher", "student"))
    return {
        "schema_version": 1,
        "hf_shrink": version("hf_shrink"),
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "recipe_sha256": recipe.digest(),
        "baseline": names[baseline],
        "stages": [report.to_stage() for report in reports],
        "kept_in_high_precision": final["kept"] or graphs.get("kept", {}),
        "better": {m.name: known[m.name].better for r in reports for m in r.measurements if known[m.name].hub},
        "remarks": [*remarks(reports, baseline=baseline), *prepared.splits.format.notes(prepared.tokenizer)],
        **({"layer_bits": final["layer_bits"]} if "layer_bits" in final else {}),
        **({"onnx": dict(graphs)} if graphs else {}),
        "tier": final["tier"],
        "reload": {"max_difference": final["max_difference"]},
        "data": prepared.splits.source,
        "label_names": list(prepared.splits.label_names),
        "environment": environment(),
        "wall_time_s": round(trained + time.monotonic() - began, 1),
        "seed": recipe.seed,
    }


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
            if prepared.kept_tokens is not None and stage.name in ("shrunk", "quantized", FOLDER):
                place = work.folder if stage.name == "quantized" else folder
                answers = answers_in_own_words(place, prepared.splits, recipe.data.max_length, batch_size=batch_size)
                own = own_tokenizer(place)
            if stage.name == "teacher":  # one that is taken as it comes may have its classes in another order
                answers = by_name(folder, names, tokens.test, prepared.tokenizer, batch_size=batch_size)
                order = order_by_name(folder, names)
            did = _did(stage.name, stage.does, work)
            subject = Subject(stage.name, _TITLES[stage.name], did, folder=folder, predictions=answers)
            found.append(dataclasses.replace(subject, order=order, tokenizer=own))
    last = next(i for i in reversed(range(len(found))) if found[i].name != FOLDER)
    found[last] = dataclasses.replace(found[last], folder=work.folder)
    return found


def _did(stage: str, does: tuple[str, ...], work: Workspace) -> tuple[str, ...]:
    """The plan's sentences, and the time that the stage took where it trained."""
    took = (work.result(stage) or {}) if stage in {"teacher", "student"} else {}
    return (*does, f"took {took['seconds']:g} s for {took['steps']} steps") if took else does


def _folder(recipe: Recipe, stage: str, work: Workspace) -> Path:
    if stage == "teacher" and recipe.teachers[0].training is None:
        return local_folder(recipe.teachers[0].model, recipe.teachers[0].revision)
    return work.folder / FOLDER if stage == FOLDER else work.stage_folder(stage)


def _weights(reference: str, revision: str | None) -> str:
    source = Path(resolve(reference))
    if not source.is_dir():
        return str(config_of(reference, revision=revision)._commit_hash)
    files = sorted(source.glob("*.safetensors"))
    return "+".join(sha256(path) for path in files)
