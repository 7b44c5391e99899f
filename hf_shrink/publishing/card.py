"""The model card: a template filled from the report, and nothing that the report does not say."""

import functools
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_shrink.errors import IntegrityError
from hf_shrink.lines import first_line
from hf_shrink.markdown import cell, clean, code, inline
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.numbers import quantity, spread
from hf_shrink.measurement.reports import artefact
from hf_shrink.measurement.values import Report
from hf_shrink.onnx_model import FOLDER
from hf_shrink.publishing.checks import metadata_of
from hf_shrink.publishing.metadata import base_model, metadata, title
from hf_shrink.publishing.private import published
from hf_shrink.publishing.sections import assembled, mark, merged, parse, parts_of, replaced
from hf_shrink.publishing.usage import codes, executed
from hf_shrink.quantization.mixed_table import LayerBits
from hf_shrink.yaml_core import write

_SAME = 0.05
"""A factor within 5% of 1 is neither smaller nor faster."""

_SHA256 = 64
"""Hex digits of one; a commit has 40."""

USAGE = "how-to-use"
"""The part of a card that says where the model is."""


def render(
    report: Mapping[str, Any],
    *,
    old: str | None = None,
    overwrite: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
) -> str:
    """The card (README.md) of a run, from the contents of its ``hf_shrink_report.json``.

    A number that is missing takes its row or sentence with it. Text from outside (labels, names, titles) cannot break the
    YAML or the Markdown; paths are cut to their last name. No network.

    Args:
        report: plain data.
        old: the card that this one takes the place of: what somebody wrote into it, outside of our parts, is kept.
        overwrite: of ``old``, replace our parts even where they were edited, and all of it where it has no marks.
        repo_id: name on the Hub in the code that uses the model; None takes ``publishing.push_to``.
        revision: branch there.

    Raises:
        RecipeError: a stage of the report is not what ``measurement`` writes; or ``old`` as in ``sections.merged``.
        IntegrityError: the card's own metadata does not read back equal.
    """
    clean_report = published(dict(report))
    stages = [Report.from_stage(stage) for stage in clean_report.get("stages") or []]
    head = metadata(clean_report, stages[artefact(stages)] if stages else None)
    destination = (clean_report.get("recipe") or {}).get("publishing") or {}
    if repo_id is None:
        repo_id, revision = destination.get("push_to"), destination.get("revision")
    filled = _environment().get_template("card_template.md").render(_facts(clean_report, stages, repo_id, revision), part=mark)
    parts = parts_of(filled)
    card = assembled(head, parts) if old is None else merged(old, head, parts, overwrite=overwrite)
    check(card, head if old is None else {**metadata_of(card), **head})
    return card


def for_repo(card: str, report: Mapping[str, Any], repo_id: str, revision: str | None) -> str:
    """A card whose code loads the model from ``repo_id``; as it is where somebody changed that part, or it has no marks."""
    usage_part = parse(render(report, repo_id=repo_id, revision=revision)).pieces
    return next((replaced(card, USAGE, piece.text) for piece in usage_part if piece.name == USAGE), card)


def check(card: str, expected: Mapping[str, Any]) -> None:
    """Read the card as the Hub does and compare its metadata.

    Raises:
        IntegrityError: it cannot be read, or says something else than ``expected``.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(card)
    try:
        found = yaml.safe_load(block[2]) if block else None
        results = getattr(ModelCard(card).data, "eval_results", None) or []
    except (ValueError, yaml.YAMLError) as error:
        raise IntegrityError(f"README.md: its metadata cannot be read again: {first_line(error)}") from error
    metrics = [m for model in expected.get("model-index", []) for r in model["results"] for m in r["metrics"]]
    if found != dict(expected) or [r.metric_value for r in results] != [m["value"] for m in metrics]:
        raise IntegrityError("README.md: its metadata does not read back as it was written; the card was changed on the way.")


@functools.cache
def _environment() -> Environment:
    """Every value is escaped as it is put out; only what is marked as ready (``Markup``) goes as it is."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=lambda value: value if isinstance(value, Markup) else inline(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["code"] = lambda text: Markup(code(text))
    environment.filters["cell"] = lambda text: Markup(cell(text))
    environment.filters["ready"] = Markup  # for what the template itself put together
    return environment


def _layer_bits(decided: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of ``bits: auto``: each layer with its bits and reason, and what all of it costs as it is stored."""
    if decided is None:
        return None
    layers = [LayerBits(**layer) for layer in decided["layers"]]
    return {"layers": [layer for layer in layers if layer.bits < 16], "measured": decided["measured"]}


def _facts(report: Mapping[str, Any], stages: list[Report], repo_id: str | None, revision: str | None) -> dict[str, Any]:
    recipe, recovery = report.get("recipe") or {}, report.get("recovery") or {}
    given = recipe.get("publishing") or {}
    base = next((i for i, stage in enumerate(stages) if stage.name == report.get("baseline")), 0)
    table = compare(stages, baseline=base) if stages else None
    stored = dict(zip(table.names, table.precisions, strict=True)) if table else {}
    final = stages[artefact(stages)] if stages else None
    precision = stored.get(final.name, "") if final else ""
    graph = next((i for i, stage in enumerate(stages) if stage.name == FOLDER), None)
    return {
        "name": title(report),
        "base": stages[base] if stages else None,
        "final": final,
        "table": Markup(table.markdown()) if table and table.rows else None,
        "done": [stage for stage in stages if stage.did or stage.notes],
        "kept": report.get("kept_in_high_precision") or {},
        "layer_bits": _layer_bits(report.get("layer_bits")),
        "recovery": recovery,
        "gate": report.get("gate"),
        "task": recipe.get("task"),
        "tier": report.get("tier"),
        "packed": precision if precision.endswith("-bit") else None,
        "code": _code(report, repo_id, revision),
        "label_names": report.get("label_names") or [],
        "reload": (report.get("reload") or {}).get("max_difference"),
        "recipe": _fenced(write(_runnable(recipe)).strip(), "yaml") if recipe else None,
        "local_keys": _local_keys(recipe, report.get("data") or {}, report.get("weights") or {}),
        "weights": report.get("weights") or {},
        "remarks": report.get("remarks") or [],
        "license": clean(given.get("license") or ""),
        "base_model": base_model(report),
        "version": report.get("hf_shrink"),
        "environment": report.get("environment") or {},
        "data": report.get("data") or {},
        "seed": report.get("seed"),
        "wall_time_s": report.get("wall_time_s"),
        "verdict": verdict(table, artefact(stages)) if table else None,
        "graph_verdict": verdict(table, graph) if table and graph is not None else None,
        **_scores(final),
    }


def _code(report: Mapping[str, Any], repo_id: str | None, revision: str | None) -> dict[str, dict[str, Any]]:
    """Each piece of code, with what it printed as comments, and whether it was executed."""
    found = {}
    for piece, text in codes(report, repo_id, revision).items():
        printed, told = executed(report, piece, repo_id)
        found[piece] = {"text": _fenced("\n".join([text, *(f"# {line}" for line in printed)]), "python"), "executed": told}
    return found


def _local_keys(recipe: Mapping[str, Any], data: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> list[str]:
    """Keys of the recipe that name what only its author has, as far as it is known.

    Args:
        recipe: as published.
        data: what the report says of the data; a sha256 is that of a file.
        weights: and of the weights that the run read.
    """
    teacher, recorded = recipe.get("teacher") or {}, weights or {}
    teachers = {"teacher": teacher} if isinstance(teacher, Mapping) else {f"teacher.{i}": t for i, t in enumerate(teacher)}
    digests = [recorded.get("teacher" if i == 0 else f"teacher.{i}") for i in range(len(teachers))]
    named = {"model": (recipe.get("model"), recorded.get("model"))}
    named |= {
        f"{key}.model": (each.get("model"), digest) for (key, each), digest in zip(teachers.items(), digests, strict=True)
    }
    found = [key for key, (value, digest) in named.items() if _is_local(str(value or ""), str(digest or ""))]
    dataset = str((recipe.get("data") or {}).get("dataset") or "")
    from_files = any(str(key).startswith("sha256") for key in data) and not dataset.startswith("package:")
    found += ["data.dataset"] if from_files or dataset.startswith("local: ") else []
    tasks = (recipe.get("measurement") or {}).get("lm_eval") or {}
    return found + (["measurement.lm_eval.folder"] if isinstance(tasks, Mapping) and tasks.get("folder") else [])


def _is_local(reference: str, digest: str) -> bool:
    """Whether a model was a folder: its path says so, or a sha256 is noted of its weights and not a commit of the Hub."""
    if reference.startswith("package:") or not reference:
        return False
    return reference.startswith("local: ") or reference.count("/") > 1 or len(digest.split("+")[0]) == _SHA256


def _runnable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with a folder to write to, as the file beside the card has it: its name alone, without ``local:``."""
    folder = str(recipe.get("output_dir") or "").removeprefix("local: ")
    return {**recipe, **({"output_dir": folder} if folder else {})}


def verdict(table: Comparison, column: int) -> dict[str, Any] | None:
    """A column against the baseline: factors above 1, each with its direction; None where there is nothing to say."""
    changes: list[dict[str, Any]] = []
    quality, timed = None, None
    for row in table.rows if column != table.baseline else ():
        cell = row.cells[column]
        if cell is None:
            continue
        quality = quality or _quality(row.name, cell.measurement.value)
        if row.name in {"bytes_on_disk", "latency_p50"} and cell.ratio and abs(cell.ratio - 1) > _SAME:
            kind = "size" if row.name == "bytes_on_disk" else row.label.removeprefix(f"{row.kind}, ")
            changes.append({"kind": kind, "better": cell.ratio < 1, "factor": max(cell.ratio, 1 / cell.ratio)})
            timed = timed or (None if kind == "size" else row.setting)
    return {"changes": changes, "quality": quality, "timed": timed} if changes or quality else None


def _quality(name: str, value: float) -> str | None:
    """What a row says of the quality that is left, in a clause; None where it is about something else."""
    known = rows()
    for change, words in (("_recovery", f"{value:.1f} % of the"), ("_ratio", f"{value:.3f}x the")):
        if name.endswith(change) and (metric := known.get(name.removesuffix(change))) is not None:
            return f"{words} {metric.shown}"
    return None


def _scores(final: Report | None) -> dict[str, Any]:
    known = rows()
    judged = [m for m in (final.measurements if final else ()) if m.name in known and known[m.name].hub]
    scores = [
        {
            "label": known[m.name].shown,
            "value": quantity(m.value, m.unit),
            "interval": spread(m.interval, m.unit) if m.interval else "",
        }
        for m in judged
    ]
    parts = judged[0].parts if judged else ()
    counts = list(itertools.takewhile(lambda part: not part.startswith("labels "), parts))
    return {"scores": scores, "judged": ", ".join(counts) or None}


def _fenced(text: str, language: str) -> Markup:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")
