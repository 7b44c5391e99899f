"""What a run leaves for its user: the model in ``output_dir`` and the graph beside it, or what a gate lets stand of them."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.distillation.teacher import decoder_inputs
from hf_shrink.gated import Kept, decide
from hf_shrink.job import Job, calibration_batches, stored_student
from hf_shrink.loading.onnx_export import write_graphs
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.measured import MEASURED, Measured
from hf_shrink.models.load import load_for, load_tokenizer
from hf_shrink.onnx_model import FOLDER
from hf_shrink.quantization.config import QuantizationConfig, entry_for
from hf_shrink.quiet import say
from hf_shrink.workspace import Workspace

FINAL = "final"
QUANTIZED = "quantized"
LABELS = ("labels", "start_positions", "end_positions")


def make_artefact(job: Job, work: Workspace, small: Path) -> None:
    """The model with all that the recipe asks for, and the graph, unless both are there and have been measured.

    Args:
        job: what the run is about.
        work: its folder.
        small: folder of the float model, the last stage before it is quantised.
    """
    whole = _last_stage(job, small)
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
        _write_model(job, work, small, stage, reaches=("report", "page"))
    if _graph(job) is None:
        return kept
    gone = bool((work.result(FOLDER) or {}).get("withdrawn"))
    if kept is not None and not kept.graph and not gone:
        work.withdraw(FOLDER)
    elif gone and (kept is None or kept.graph):
        _write_graph(job, work, small, reaches=("report", "page"))
    return kept


def _last_stage(job: Job, small: Path) -> str:
    """The stage whose model is the artefact where nothing is rolled back."""
    return QUANTIZED if entry_for("bitsandbytes", job.recipe.quantization) is not None else small.name


def _graph(job: Job) -> QuantizationConfig | None:
    return entry_for("onnx", job.recipe.quantization)


def _write_model(job: Job, work: Workspace, small: Path, stage: str, reaches: tuple[str, ...] | None = None) -> None:
    """The artefact in ``output_dir`` itself, loaded again and compared before it is put in place."""

    def write(fresh: Path) -> dict[str, Any]:
        source = small if stage == QUANTIZED else work.stage_folder(stage)
        model, decided = load_for(job.recipe.task, str(source), new_head=False), dict[str, Any](kept={})
        if stage == QUANTIZED:
            model, decided = stored_student(job, model)
        tokenizer = load_tokenizer(str(source))  # its own: it may know fewer tokens
        tier = save(model, fresh, tokenizer=tokenizer)
        reload = verify(fresh, model, _some_inputs(job, model, tokenizer))
        return {"of": stage, "tier": tier, "max_difference": reload.max_difference, **decided}

    say(f"{FINAL}: begins")
    work.write_artefact(FINAL, write, reaches=reaches)


def _write_graph(job: Job, work: Workspace, small: Path, reaches: tuple[str, ...] | None = None) -> None:
    """Graphs for ONNX Runtime of the float model, in the artefact's ``onnx`` folder."""
    config = _graph(job)

    def write(fresh: Path) -> dict[str, Any]:
        assert config is not None
        batches = calibration_batches(job, rows=config.calibration_rows) if config.mode == "static" else None
        made = write_graphs(load_for(job.recipe.task, str(small), new_head=False), fresh, config, calibration=batches)
        return {name: value for name, value in made.to_json().items() if name != "folder"}

    say(f"{FOLDER}: begins")
    work.write_artefact(FOLDER, write, reaches=reaches)


def _some_inputs(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A batch of the first test rows without labels, as ``tokenizer`` reads them."""
    splits = job.prepared.splits
    texts = splits.test.select(range(min(8, len(splits.test))))
    rows = splits.format.tokens(texts, tokenizer, job.recipe.data.max_length, "test")
    batch = dict(splits.format.collator(tokenizer)([rows[i] for i in range(min(8, len(rows)))]))
    if model.config.is_encoder_decoder:
        batch |= decoder_inputs(model, batch)
    return {name: tensor for name, tensor in batch.items() if name not in LABELS}
