"""What a run leaves for its user: the model in ``output_dir`` and the graph beside it, or what a gate lets stand of them."""

import shutil
from pathlib import Path
from typing import Any

from hf_shrink.gated import Kept, decide
from hf_shrink.job import Job, calibration_batches
from hf_shrink.loading.onnx_export import write_graphs
from hf_shrink.measured import MEASURED, Measured
from hf_shrink.models.load import load_for
from hf_shrink.onnx_model import FOLDER
from hf_shrink.quantization.config import QuantizationConfig, entry_for
from hf_shrink.quantization.roundings import roundings_of
from hf_shrink.quantization.straight_through import check_exported
from hf_shrink.quiet import say
from hf_shrink.recovering import QUANTIZED, RECOVERED, in_own_words, recover, write_student
from hf_shrink.workspace import Workspace

FINAL = "final"


def make_artefact(job: Job, work: Workspace, small: Path) -> None:
    """The model with all that the recipe asks for, and the graph, unless both are there and have been measured.

    Args:
        job: what the run is about.
        work: its folder.
        small: folder of the float model, the last stage before it is quantised.
    """
    whole = _last_stage(job, small)
    if job.recipe.recovery is not None:
        recover(job, work, small)
    if (is_there := work.result(FINAL)) is None or (work.result(MEASURED) is None and is_there.get("of", whole) != whole):
        _write_model(job, work, small, whole)
    graph = work.result(FOLDER)
    if _graph(job) is not None and (graph is None or (work.result(MEASURED) is None and graph.get("withdrawn"))):
        _write_graph(job, work, small)


def settle(job: Job, work: Workspace, small: Path, measured: Measured) -> Kept | None:
    """Put what the recipe's gate lets stand in the place of the artefact; None where the recipe has no gate."""
    kept = decide(job.recipe, job.prepared.splits.label_names, measured)
    whole = _last_stage(job, small)
    stage = kept.model if kept is not None else whole
    if (work.result(FINAL) or {}).get("of", whole) != stage:
        _write_model(job, work, small, stage, reaches=("report", "tracked", "page"))
    if _graph(job) is None:
        return kept
    gone = bool((work.result(FOLDER) or {}).get("withdrawn"))
    if kept is not None and not kept.graph and not gone:
        work.withdraw(FOLDER)
    elif gone and (kept is None or kept.graph):
        _write_graph(job, work, small, reaches=("report", "tracked", "page"))
    return kept


def _last_stage(job: Job, small: Path) -> str:
    """The stage whose model is the artefact where nothing is rolled back."""
    if job.recipe.recovery is not None:
        return RECOVERED
    return QUANTIZED if entry_for("bitsandbytes", job.recipe.quantization) is not None else small.name


def _before_graph(job: Job, work: Workspace, small: Path) -> Path:
    """Folder of the float model that the graph is made of: trained for it, where the recovery is about the graph."""
    recovers = job.recipe.recovery is not None and entry_for("bitsandbytes", job.recipe.quantization) is None
    return work.stage_folder(RECOVERED) if recovers else small


def _graph(job: Job) -> QuantizationConfig | None:
    return entry_for("onnx", job.recipe.quantization)


def _write_model(job: Job, work: Workspace, small: Path, stage: str, reaches: tuple[str, ...] | None = None) -> None:
    """The artefact in ``output_dir`` itself, loaded again and compared before it is put in place."""

    def write(fresh: Path) -> dict[str, Any]:
        if job.recipe.recovery is not None and stage in (QUANTIZED, RECOVERED):  # whole already, and compared
            shutil.copytree(work.stage_folder(stage), fresh, dirs_exist_ok=True)
            return {"of": stage, **(work.result(stage) or {})}
        source = small if stage == QUANTIZED else work.stage_folder(stage)
        return {"of": stage, **write_student(in_own_words(job, source), source, fresh, quantized=stage == QUANTIZED)}

    say(f"{FINAL}: begins")
    work.write_artefact(FINAL, write, reaches=reaches)


def _write_graph(job: Job, work: Workspace, small: Path, reaches: tuple[str, ...] | None = None) -> None:
    """Graphs for ONNX Runtime of the float model, in the artefact's ``onnx`` folder."""
    config = _graph(job)

    def write(fresh: Path) -> dict[str, Any]:
        assert config is not None
        source = _before_graph(job, work, small)
        own = in_own_words(job, source)
        batches = calibration_batches(own, rows=config.calibration_rows) if config.mode == "static" else None
        model = load_for(job.recipe.task, str(source), new_head=False)
        made = write_graphs(model, fresh, config, calibration=batches)
        if source != small:
            check_exported(model, fresh, roundings_of(model, config))
        return {name: value for name, value in made.to_json().items() if name != "folder"}

    say(f"{FOLDER}: begins")
    work.write_artefact(FOLDER, write, reaches=reaches)
