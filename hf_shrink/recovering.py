"""Two stages of a run: the student quantised, and what that took given back: by adapters, or by quantisation-aware training."""

import copy
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, set_seed

from hf_shrink.columns import LABELS
from hf_shrink.data.tokenize import tokenize
from hf_shrink.distillation.teacher import Teacher, decoder_inputs
from hf_shrink.errors import QualityError, RecipeError
from hf_shrink.job import Job, calibration_batches, stored_student
from hf_shrink.loading.save import save, save_adapter
from hf_shrink.loading.verify import load_strictly, verify
from hf_shrink.measurement.energy import metered
from hf_shrink.models.load import load_for, load_tokenizer
from hf_shrink.own_forward import unwrap_forward
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig, entry_for
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.roundings import Roundings, rounded_tables, roundings_of
from hf_shrink.quantization.straight_through import check_stored, weights_as_stored
from hf_shrink.quiet import say
from hf_shrink.repacking import disable_cpu_repacking
from hf_shrink.tracking import keep_logs
from hf_shrink.training.arguments import training_arguments
from hf_shrink.training.callbacks import HeldZeros
from hf_shrink.training.config import OptimizationConfig, RecoveryConfig
from hf_shrink.training.merging import merged, stored_again, weight_error
from hf_shrink.training.recovery import with_adapters, with_correction
from hf_shrink.training.store import checkpoints
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.workspace import Workspace

QUANTIZED, RECOVERED = "quantized", "recovered"


def recover(job: Job, work: Workspace, small: Path) -> None:
    """Both stages, each unless its files stand; each leaves a whole artefact and what is to be known of it.

    Where only a graph is to be quantised there is one: the float student trained for it.

    Args:
        job: whose recipe has a ``recovery``.
        work: its folder.
        small: folder of the float student.

    Raises:
        QualityError: adapters that were to be merged leave a model that answers no more like the float student than without.
    """
    job = in_own_words(job, small)
    for_graph = entry_for("bitsandbytes", job.recipe.quantization) is None
    if not for_graph and work.result(QUANTIZED) is None:
        say(f"{QUANTIZED}: begins")
        work.write_stage(QUANTIZED, lambda fresh: write_student(job, small, fresh))
    if work.result(RECOVERED) is None:
        say(f"{RECOVERED}: begins")
        write = _write_for_graph if for_graph else _write_recovered
        work.write_stage(RECOVERED, lambda fresh: write(job, small, fresh))


def write_student(job: Job, source: Path, fresh: Path, *, quantized: bool = True) -> dict[str, Any]:
    """The model of ``source`` as an artefact in ``fresh``, quantised or as it is, loaded again and compared."""
    model, decided = load_for(job.recipe.task, str(source), new_head=False), dict[str, Any](kept={})
    if quantized:
        model, decided = stored_student(job, model)
    tokenizer = load_tokenizer(str(source))  # its own: it may know fewer tokens
    tier = save(model, fresh, tokenizer=tokenizer)
    reload = verify(fresh, model, some_inputs(job, model, tokenizer))
    return {"tier": tier, "max_difference": reload.max_difference, **decided}


def some_inputs(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A batch of the first test rows without labels, as ``tokenizer`` reads them."""
    splits = job.prepared.splits
    texts = splits.test.select(range(min(8, len(splits.test))))
    rows = splits.format.tokens(texts, tokenizer, job.recipe.data.max_length, "test")
    batch = dict(splits.format.collator(tokenizer)([rows[i] for i in range(min(8, len(rows)))]))
    if model.config.is_encoder_decoder:
        batch |= decoder_inputs(model, batch)
    return {name: tensor for name, tensor in batch.items() if name not in LABELS}


def in_own_words(job: Job, source: Path) -> Job:
    """The job with all rows as the model in ``source`` reads them, where its vocabulary was cut."""
    if job.prepared.kept_tokens is None:
        return job
    tokenizer = load_tokenizer(str(source))
    tokens = tokenize(job.prepared.splits, tokenizer, job.recipe.data.max_length)
    return dataclasses.replace(job, tokens=tokens, prepared=dataclasses.replace(job.prepared, tokenizer=tokenizer))


def _write_recovered(job: Job, source: Path, fresh: Path) -> dict[str, Any]:
    """The quantised student with what came back, in ``fresh``, loaded again and compared."""
    config, before = job.recipe.recovery, job.work.stage_folder(QUANTIZED)
    assert config is not None and isinstance(job.work, Workspace)
    dense = load_for(job.recipe.task, str(source), new_head=False)
    small = load_strictly(before, type(dense), dense.device)
    disable_cpu_repacking(small)
    set_seed(job.recipe.seed)
    pair = _Pair(dense, small, some_inputs(job, dense, load_tokenizer(str(before))), _judge(job, dense, config))
    shutil.copytree(before, fresh, dirs_exist_ok=True)
    known = job.work.result(QUANTIZED) or {}
    result, facts = (_trained if config.method == "qat" else _given_back)(job, pair, config, fresh)
    reload = verify(fresh, result, pair.inputs)
    told = {"method": config.method, "positions": None if pair.judge is None else pair.judge.positions}
    facts["recovery"] = {**told, "base_tier": known.get("tier"), **facts["recovery"]}
    return {**known, **facts, "max_difference": reload.max_difference}


def _write_for_graph(job: Job, source: Path, fresh: Path) -> dict[str, Any]:
    """The float student after a training through the rounding of ONNX Runtime, in ``fresh``, loaded again and compared."""
    config, graph = job.recipe.recovery, entry_for("onnx", job.recipe.quantization)
    assert config is not None and graph is not None
    dense, tokenizer = load_for(job.recipe.task, str(source), new_head=False), load_tokenizer(str(source))
    set_seed(job.recipe.seed)
    judge, roundings = _judge(job, dense, config), roundings_of(dense, graph)

    def kl(model: PreTrainedModel) -> float | None:
        with weights_as_stored(model, roundings, {}):
            return None if judge is None else judge.of(model)

    before = kl(dense)
    student, took = _through_rounding(job, dense, config, graph)
    tier = save(student, fresh, tokenizer=tokenizer)
    reload = verify(fresh, student, some_inputs(job, student, tokenizer))
    told = {"method": config.method, "backend": graph.backend, "positions": None if judge is None else judge.positions}
    return {
        **took,
        "tier": tier,
        "kept": {},
        "recovery": {**told, "kl": [before, kl(student)]},
        "max_difference": reload.max_difference,
    }


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The student in float and quantised, inputs that compare two models, and who says how far answers are off, if anyone."""

    dense: PreTrainedModel
    small: PreTrainedModel
    inputs: dict[str, Tensor]
    judge: Divergence | None

    def kl(self, model: PreTrainedModel) -> float | None:
        """Of the answers of ``model`` from those of the float student."""
        return None if self.judge is None else self.judge.of(model)


def _trained(job: Job, pair: _Pair, config: RecoveryConfig, fresh: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The float student after a training through the rounding, stored as it was trained, in ``fresh``."""
    stored = entry_for("bitsandbytes", job.recipe.quantization)
    assert stored is not None
    before = pair.kl(pair.small)
    layers = {name: stored.at(width) for name, width in stored_bits(pair.small).items()}
    roundings = roundings_of(pair.dense, layers | rounded_tables(pair.dense, stored.at(8)))
    student, took = _through_rounding(job, pair.dense, config, roundings)
    result = stored_again(student, pair.small, stored)
    check_stored(student, result, roundings)
    tier = save(result, fresh)
    return result, {**took, "tier": tier, "recovery": {"kl": [before, pair.kl(result)]}}


def _through_rounding(
    job: Job, dense: PreTrainedModel, config: RecoveryConfig, quantization: QuantizationConfig | Roundings
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A trained copy of ``dense``, in float, and what the training took."""
    began = time.monotonic()
    student = copy.deepcopy(dense)
    took = _train(
        job,
        student,
        dense,
        config,
        callbacks=[HeldZeros(student)],
        optimization=OptimizationConfig(freeze=job.recipe.optimization.freeze),
        quantization=quantization,
    )
    return student, {"seconds": round(time.monotonic() - began, 1), **took}


def _given_back(job: Job, pair: _Pair, config: RecoveryConfig, fresh: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The quantised student with adapters, in ``fresh``; they are trained where the recipe says so."""
    dense, small = pair.dense, pair.small
    kl, error = [pair.kl(small)], [weight_error(dense, small)]
    began = time.monotonic()
    adapted, took = _with_adapters(job, dense, small, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:  # trained in float32; transformers loads them in the precision of the model
            parameter.data = parameter.data.to(small.dtype)
    known: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), **took}
    whole: Any = adapted.get_base_model()
    facts: dict[str, Any] = {"keep": config.keep}
    if config.keep == "merge":
        stored = entry_for("bitsandbytes", job.recipe.quantization)
        assert stored is not None
        facts["kl_of_adapters"] = pair.kl(whole)
        result = stored_again(merged(adapted, pair.inputs), small, stored)
        known["tier"] = save(result, fresh)
    else:
        result = whole
        save_adapter(adapted, fresh)
        known["tier"] = "adapter"
    kl.append(pair.kl(result))
    error.append(weight_error(dense, result))
    if config.keep == "merge":
        _refuse_worse(kl, error)
    return result, {**known, "recovery": {**facts, "kl": kl, "weight_error": error}}


def _with_adapters(
    job: Job, dense: PreTrainedModel, small: PreTrainedModel, config: RecoveryConfig
) -> tuple[PeftModel, dict[str, Any]]:
    """The model with its adapters as they are to be kept, and the optimizer steps and the energy they took."""
    if config.start == "none":
        adapted = with_adapters(small, rank=config.rank)
    else:
        rows = calibration_batches(job, rows=config.calibration_rows) if config.start == "inputs" else None
        adapted = with_correction(dense, small, rank=config.rank, calibration=rows)
    return adapted, {"steps": 0} if config.training is None else _train(job, adapted, dense, config)


def _train(job: Job, model: Any, dense: PreTrainedModel, config: RecoveryConfig, **more: Any) -> dict[str, Any]:
    """Train ``model`` to answer as ``dense`` does, or as the recipe says; the optimizer steps and the energy it took."""
    assert config.training is not None
    scratch, form = job.work.scratch(RECOVERED), job.prepared.splits.format
    trainer = ShrinkTrainer(
        model,
        training_arguments(config.training, output_dir=scratch, seed=job.recipe.seed, where="recovery.training"),
        form.collator(job.prepared.tokenizer),
        job.tokens.train,
        job.tokens.validation,
        job.prepared.tokenizer,
        teacher=Teacher(dense),
        distillation=config.learns(),
        **more,
    )
    keep_logs(trainer, job.work, RECOVERED)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for the result
    with metered(job.recipe.measurement.energy, scratch) as spent:
        trainer.train(resume_from_checkpoint=True if checkpoints(scratch) else None)
    model.eval()
    unwrap_forward(model)
    return {"steps": trainer.state.global_step, **spent}


def _judge(job: Job, dense: PreTrainedModel, config: RecoveryConfig) -> Divergence | None:
    """Asks about the last training rows: adapters start from the first. None where answers are no distributions."""
    try:
        return Divergence(dense, calibration_batches(job, rows=config.calibration_rows, last=True))
    except RecipeError:
        return None


def _refuse_worse(kl: list[float | None], error: list[float]) -> None:
    """A merge that helps nothing is not what somebody asked for; without KL the weights must do."""
    told = kl[0] is not None and kl[1] is not None
    before, after = (kl[0], kl[1]) if told else (error[0], error[1])
    assert before is not None and after is not None
    if after >= before:
        what = "mean KL of its answers from the float student's" if told else "relative error of its weights"
        raise QualityError(
            f"recovery.keep: merged into quantised weights, the {what} is {after:.3g}; without recovery it is {before:.3g}.\n"
            "Use keep: adapter, train the adapters (longer), or remove `recovery`."
        )
