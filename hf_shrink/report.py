"""The last stage: report, recipe and card into the artefact, from what was measured."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_shrink.files import sha256
from hf_shrink.gated import Kept
from hf_shrink.measured import Measured
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.remarks import remarks
from hf_shrink.measurement.reports import NAME
from hf_shrink.measurement.values import Report
from hf_shrink.models.load import config_of
from hf_shrink.models.reference import resolve
from hf_shrink.onnx_model import FOLDER
from hf_shrink.plan import Prepared
from hf_shrink.publishing.readme import set_aside, write_card
from hf_shrink.publishing.selection import CARD
from hf_shrink.quantization.config import entry_for
from hf_shrink.quantization.size import differs
from hf_shrink.quiet import say
from hf_shrink.recipe import Recipe
from hf_shrink.rehearsal import rehearse
from hf_shrink.stage_plan import StagePlan
from hf_shrink.workspace import Workspace

RECIPE = "hf_shrink_recipe.yaml"


def fingerprints(recipe: Recipe, prepared: Prepared) -> dict[str, str]:
    """What the run reads, by content: data as loaded, weights by sha256, or by commit where they come from the Hub."""
    found = {name: value for name, value in prepared.splits.source.items() if name.startswith("fingerprint")}
    found["model"] = _weights(recipe.model, recipe.revision)
    for i, each in enumerate(recipe.teachers):
        found["teacher" if i == 0 else f"teacher.{i}"] = _weights(each.model, each.revision)
    return found


def write_report(
    recipe: Recipe, prepared: Prepared, work: Workspace, measured: Measured, kept: Kept | None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Run the card's code, write the three files beside the model, and return the report.

    People may edit the card, so the manifest leaves it out. Code that fails makes no card, and one that is there is set aside;
    the report says why, and ``check_rehearsed`` raises it when the rest is done.

    Args:
        recipe: of the run.
        prepared: what its checks left.
        work: its folder.
        measured: the numbers of all stages.
        kept: what the gate lets stand; None where there is no gate.
        overwrite: replace our parts of a card that is there, even where they were edited.
    """
    is_done = work.result("report") is not None
    if is_done:
        report = dict(json.loads((work.folder / NAME).read_text(encoding="utf-8")))
    else:
        say("report: begins")
        report = _report(recipe, prepared, work, measured, kept)
    told = report.get("usage") or {}
    if is_done and (work.folder / CARD).is_file() and not any("failed" in known for known in told.values()):
        return report
    report["usage"] = rehearse(report, work.folder)

    def write(fresh: Path) -> dict[str, Any]:
        (fresh / NAME).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (fresh / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        return {}

    if not any("failed" in known for known in report["usage"].values()):
        write_card(work.folder, report, overwrite=overwrite)
    elif not is_done:
        set_aside(work.folder)
    work.write_artefact("report", write, reaches=() if is_done else None)
    return dict(json.loads((work.folder / NAME).read_text(encoding="utf-8")))


def _report(recipe: Recipe, prepared: Prepared, work: Workspace, measured: Measured, kept: Kept | None) -> dict[str, Any]:
    known, dropped = rows(), {} if kept is None else kept.dropped
    reports = [report for report in measured.reports if report.name not in dropped]
    final: Mapping[str, Any] = work.result("final") or {}
    graphs: Mapping[str, Any] = {} if FOLDER in dropped else work.result(FOLDER) or {}
    trained = sum((work.result(stage) or {}).get("seconds", 0.0) for stage in ("teacher", "student", "recovered"))
    inputs = {name: value for name, value in work.manifest["inputs"].items() if not name.startswith("fingerprint")}
    gone = [report.to_stage() for report in measured.reports if report.name in dropped]
    return {
        "schema_version": 1,
        "hf_shrink": version("hf_shrink"),
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "recipe_sha256": recipe.digest(),
        "baseline": measured.reports[measured.baseline].name,
        "stages": [report.to_stage() for report in reports],
        **({} if kept is None else {"gate": kept.to_json()}),
        **({"dropped": gone} if gone else {}),
        "kept_in_high_precision": final["kept"] or graphs.get("kept", {}),
        "better": {
            m.name: row.better for r in reports for m in r.measurements if (row := known.get(m.name)) is not None and row.hub
        },
        "remarks": [
            *remarks(reports, baseline=measured.baseline),
            *sizes(recipe, prepared.plan.stages, reports),
            *prepared.splits.format.notes(prepared.tokenizer),
        ],
        **({"layer_bits": final["layer_bits"]} if "layer_bits" in final else {}),
        **({"recovery": final["recovery"]} if "recovery" in final else {}),
        **({"onnx": dict(graphs)} if graphs else {}),
        "tier": final["tier"],
        **_positions(work.folder),
        "reload": {"max_difference": final["max_difference"]},
        "weights": {name: value for name, value in inputs.items() if value not in ("", "None")},
        "data": prepared.splits.source,
        "label_names": list(prepared.splits.label_names),
        "environment": measured.environment,
        "wall_time_s": round(trained + measured.seconds, 1),
        "seed": recipe.seed,
    }


def sizes(recipe: Recipe, stages: Sequence[StagePlan], reports: Sequence[Report]) -> list[str]:
    """A sentence for each stage whose file is not as large as the plan said, by more than a hundredth.

    A graph's nodes and what ``bits: auto`` comes to are estimates in the plan, and not compared.
    """
    stored = entry_for("bitsandbytes", recipe.quantization)
    estimates = {FOLDER, *(("quantized", "recovered") if stored is not None and stored.bits == "auto" else ())}
    planned = {s.name: s.bytes for s in stages if s.writes and s.bytes is not None and s.name not in estimates}
    written = {report.name: m.value for report in reports for m in report.measurements if m.name == "bytes_on_disk"}
    return [
        f"{name}: the plan said {planned[name]:,} bytes of weights, {size:,.0f} were written."
        for name, size in written.items()
        if name in planned and differs(planned[name], size)
    ]


def _positions(folder: Path) -> dict[str, int]:
    """Tokens that the model has room for, where its config says so."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = config.get("max_position_embeddings", config.get("n_positions"))
    return {"positions": said} if isinstance(said, int) else {}


def _weights(reference: str, revision: str | None) -> str:
    source = Path(resolve(reference))
    if not source.is_dir():
        return str(config_of(reference, revision=revision)._commit_hash)
    files = sorted(source.glob("*.safetensors"))
    return "+".join(sha256(path) for path in files)
