"""Write a model as graphs for ONNX Runtime, in int8 for CPUs, and compare them with torch before they are put in place."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError
from hf_shrink.finite import check_finite
from hf_shrink.loading.save import fresh_folder
from hf_shrink.measurement.inputs import longest, random_inputs
from hf_shrink.measurement.subjects import at_rest
from hf_shrink.onnx_model import FLOAT, FOLDER, INT8, OnnxModel
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_graph import Signature, float_graph, in_float32, signature_of
from hf_shrink.quantization.onnx_int8 import Feed, int8_graph
from hf_shrink.quantization.onnx_size import tables_of
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import existing_quantization
from hf_shrink.quiet import quiet_loading

TOLERANCE = 1e-4
"""Largest difference between the float graph and torch, as a part of the largest output where that is above 1."""
_LONGEST = 512
"""Tokens of the longest row that is compared, where a model takes more."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class OnnxExport:
    """What was written and how near it is to the model.

    Attributes:
        folder: that holds ``onnx/``.
        bytes: file name -> size.
        float_difference: largest absolute difference between the float graph and torch; at most ``TOLERANCE``.
        int8_difference: the same of the int8 graph: what 8 bits cost, measured and not judged.
        agreement: fraction of rows, or of tokens, whose largest output is in the same place; None without such outputs.
        quantized: number of projections in 8 bits.
        kept: name -> reason of the projections that stay in float.
    """

    folder: str
    bytes: dict[str, int]
    float_difference: float
    int8_difference: float
    agreement: float | None
    quantized: int
    kept: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Table:
        """A table for the terminal."""
        table = Table("", "", title=f"{Path(self.folder).name}: runs on ONNX Runtime")
        for name, size in self.bytes.items():
            table.add_row(f"{FOLDER}/{name}", f"{size / 1e6:.1f} MB")
        table.add_row("float graph against torch", f"{self.float_difference:.2g}")
        table.add_row("int8 graph against torch", f"{self.int8_difference:.2g}")
        if self.agreement is not None:
            table.add_row("same top class", f"{100 * self.agreement:.1f} %")
        table.add_row("projections in 8 bits", str(self.quantized))
        for name, reason in self.kept.items():
            table.add_row(f"float: {name}", reason)
        return table


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    config: QuantizationConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: Iterable[Batch] | None = None,
) -> OnnxExport:
    """Write ``onnx/model_quantized.onnx``, config and tokenizer to ``folder``, as ONNX Runtime and transformers.js expect them.

    Args:
        model: a float model of any shapes, with one of the heads of ``signature_of``; stays as it is.
        folder: files of the same names are replaced, all of them or none. The config of a folder that holds the model's
            weights, perhaps in fewer bits, stays: they would not load without it.
        config: with ``backend="onnx"``; None takes its defaults.
        tokenizer: saved beside the graph.
        calibration: batches for ``mode="static"``: ``input_ids``, ``attention_mask`` and what else the graph takes.

    Raises:
        RecipeError: quantised already, a family or head that is not exported, a config that does not fit, or a folder with the
            weights of another model or a float graph that would not be replaced.
        MismatchError: calibration that the model does not take.
        NonFiniteError: a weight or an output is NaN or infinite.
        IntegrityError: the float graph does not compute what torch does.
        ResourceError: onnx or onnxruntime is missing, the model is too large, or the disk is full.
    """
    folder, config = Path(folder), config or QuantizationConfig(backend="onnx")
    has_config = _is_of(folder, model)
    if not config.float_graph and (folder / FOLDER / FLOAT).exists():
        raise RecipeError(
            f"export_onnx: {folder.name} holds {FOLDER}/{FLOAT} of another export, which would stay beside the new graph.\n"
            "Remove it, ask for float_graph=True, or name another folder."
        )
    with fresh_folder(folder) as fresh, quiet_loading():
        result = write_graphs(model, fresh, config, calibration=calibration)
        if not has_config:
            _save_config(model, fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
    return OnnxExport(str(folder), **{name: value for name, value in vars(result).items() if name != "folder"})


_SAME = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "id2label")


def _is_of(folder: Path, model: PreTrainedModel) -> bool:
    """Whether ``folder`` holds weights of ``model``, and so a config that says how they are stored; none is False."""
    if not any(path for kind in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(kind)):
        return False
    try:
        found = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        found = None
    same = [getattr(found, name, None) == getattr(model.config, name, None) for name in _SAME]
    if not all(same) or (getattr(found, "architectures", None) or [""])[0] != type(model).__name__:
        raise RecipeError(f"export_onnx: {folder.name} holds the weights of another model; name another folder.")
    return True


def _save_config(model: PreTrainedModel, folder: Path) -> None:
    stored = copy.deepcopy(model.config)
    if hasattr(stored, "quantization_config"):
        del stored.quantization_config  # shapes for a loader of weights, which are not here
    stored.architectures = [type(model).__name__]
    stored.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def write_graphs(
    model: PreTrainedModel, folder: Path, config: QuantizationConfig, *, calibration: Iterable[Batch] | None = None
) -> OnnxExport:
    """Write ``onnx/`` alone into ``folder``, which nobody else reads yet; arguments and errors as in ``export_onnx``."""
    _check(model, config, calibration)
    signature, plan = signature_of(model), keep_plan(model, config)
    exact_model = in_float32(model)
    feeds = (_feed(batch, signature, exact_model) for batch in calibration or ())
    graph = float_graph(exact_model)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    whole, small = folder / FOLDER / FLOAT, folder / FOLDER / INT8
    whole.write_bytes(graph.SerializeToString())
    exact, *_ = compare_with_torch(OnnxModel(whole, model.config), exact_model)
    if not exact <= TOLERANCE:  # a NaN is no small difference
        raise IntegrityError(f"onnx: the float graph differs from torch by up to {exact:.3g}; {TOLERANCE:.0e} is rounding.")
    small.write_bytes(int8_graph(graph, plan.quantized, tables_of(model), config, feeds).SerializeToString())
    _, difference, agreement = compare_with_torch(OnnxModel(small, model.config), exact_model)
    if not np.isfinite(difference):
        raise NonFiniteError("onnx: the int8 graph puts out NaN or infinities where torch does not.")
    if not config.float_graph:
        whole.unlink()
    sizes = {path.name: path.stat().st_size for path in sorted((folder / FOLDER).iterdir())}
    return OnnxExport(str(folder), sizes, exact, difference, agreement, len(plan.quantized), dict(plan.kept))


def compare_with_torch(graph: OnnxModel, model: PreTrainedModel) -> tuple[float, float, float | None]:
    """Largest difference as a part of the largest output (or of 1), the difference itself, and agreement of the top class.

    Batches of one and three rows, of one, seven and the most tokens; rows are padded on either side. What stands in place of
    padding is only checked to be finite: nobody reads it. A cache is filled and gone on from.
    """
    signature, relative, absolute, same = signature_of(model), 0.0, 0.0, []
    with at_rest(model):
        for batch in _batches(model):
            ours, theirs = _answers(model, batch, signature), _answers(graph, batch, signature)
            for name, expected in ours.items():
                found, keep = (
                    theirs[name],
                    batch["attention_mask"].bool() if signature.per_token else ...,
                )
                if found.shape != expected.shape or not bool(found.isfinite().all()):
                    return float("nan"), float("nan"), None
                difference = float((found - expected)[keep].abs().max())
                absolute = max(absolute, difference)
                relative = max(relative, difference / max(1.0, float(expected[keep].abs().max())))
                if name != "last_hidden_state":
                    dim = 1 if name.endswith("_logits") else -1
                    agrees = found.argmax(dim) == expected.argmax(dim)
                    same.append((agrees if dim == 1 else agrees[keep]).float().flatten())
    return relative, absolute, float(torch.cat(same).mean()) if same else None


def _answers(model: Any, batch: Batch, signature: Signature) -> dict[str, Tensor]:
    """The outputs of one batch; with a cache, the last tokens come in a second call."""
    if not signature.layers or batch["input_ids"].shape[1] < 3:
        found = model(**_taken(batch, signature))
        return {name: found[name].float().cpu() for name in signature.outputs}
    cut = batch["input_ids"].shape[1] - 2
    places = {**batch, "position_ids": _positions(batch["attention_mask"])}
    early = {name: tensor[:, :cut] for name, tensor in places.items()}
    late = {name: tensor if name == "attention_mask" else tensor[:, cut:] for name, tensor in places.items()}
    first = model(**_taken(early, signature), past_key_values=DynamicCache(), use_cache=True)
    second = model(**_taken(late, signature), past_key_values=first.past_key_values, use_cache=True)
    return {"logits": torch.cat([first.logits, second.logits], dim=1).float().cpu()}


def _taken(batch: Batch, signature: Signature) -> dict[str, Tensor]:
    return {name: batch[name] for name in signature.inputs if name in batch}


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _batches(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    limit = min(longest(model) or _LONGEST, _LONGEST, getattr(model.config, "max_position_embeddings", None) or _LONGEST)
    for rows in (1, 3):
        for length in sorted({1, min(7, limit), limit}):
            batch = random_inputs(model, batch_size=rows, length=length, seed=length)
            yield _complete(batch)
            if rows == 3 and length > 2:
                for side in ("right", "left"):
                    yield _complete(_padded(batch, side, model.config.pad_token_id or 0))


def _padded(batch: Batch, side: str, pad: int) -> dict[str, Tensor]:
    """The first row keeps a third of its words and the second two thirds."""
    ids, mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
    for row in (0, 1):
        gone = ids.shape[1] - (row + 1) * ids.shape[1] // 3
        where = slice(-gone, None) if side == "right" else slice(None, gone)
        ids[row, where], mask[row, where] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


def _complete(batch: Batch) -> dict[str, Tensor]:
    types = torch.zeros_like(batch["input_ids"])
    types[:, types.shape[1] // 2 :] = 1
    return {**batch, "token_type_ids": types, "position_ids": _positions(batch["attention_mask"])}


def _feed(batch: Batch, signature: Signature, model: PreTrainedModel) -> Feed:
    """A calibration batch as the graph takes it, with an empty cache where it has one."""
    if "input_ids" not in batch:
        raise MismatchError(f"onnx: a calibration batch has no input_ids; it has: {', '.join(batch) or 'nothing'}.")
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    whole = {"token_type_ids": torch.zeros_like(ids), "position_ids": _positions(mask), **batch, "attention_mask": mask}
    feed = {name: whole[name].numpy() for name in signature.inputs}
    if signature.layers:
        with at_rest(model):
            seen = model(input_ids=ids[:, :1], use_cache=True).past_key_values
        for i, layer in enumerate(seen.layers):
            for part, tensor in (("key", layer.keys), ("value", layer.values)):
                feed[f"past_key_values.{i}.{part}"] = tensor[:, :, :0].float().cpu().numpy()
    return feed


def _check(model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Batch] | None) -> None:
    if config.backend != "onnx":
        raise RecipeError(f"export_onnx: the config says backend {config.backend!r}; write QuantizationConfig(backend='onnx').")
    if not isinstance(model, PreTrainedModel) or carries_adapter(model):
        raise RecipeError(
            f"onnx: {type(model).__name__} is no model of transformers, or carries adapters; of one with adapters, "
            "merge_and_unload()."
        )
    if (existing := existing_quantization(model)) is not None:
        raise RecipeError(
            f"onnx: the model is quantised already ({existing}), and its weights are in that library's format.\n"
            "Export the float model it was made from."
        )
    if config.mode == "static" and calibration is None:
        raise RecipeError("onnx: mode: static needs calibration: batches of real inputs. Give some, or take mode: dynamic.")
    if config.mode == "dynamic" and calibration is not None:
        raise RecipeError("onnx: calibration would be ignored with mode: dynamic; leave it out, or take mode: static.")
    check_finite(model, "onnx")
