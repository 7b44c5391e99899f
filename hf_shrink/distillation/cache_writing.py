"""Let a teacher say what it has to say about every row, once; a kill loses no more than one file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_shrink.class_names import named_classes
from hf_shrink.distillation.autocast import autocast_key
from hf_shrink.distillation.cache_files import (
    Layout,
    Manifest,
    check_room,
    claimed,
    first_fault,
    read_manifest,
    refuse_another,
    write_manifest,
    write_shard,
)
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.merged import keep
from hf_shrink.distillation.row_keys import COLUMNS, RowKeys, check_padding, refuse_moved, row_keys
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.lines import few
from hf_shrink.repacking import refuse_repacked

SHARD_BYTES = 2**25
"""About how large one file is: what a kill can lose."""

_SHARD_ROWS, _BATCH_ROWS = 4096, 32
_NO_ANSWER = {
    *("architectures", "dtype", "transformers_version", "id2label", "label2id", "problem_type", "tokenizer_class"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions"),
}
"""Keys of a model's config that no answer depends on."""

_LOGITS = 2**26  # numbers that the teacher gives at once, at most


@dataclass(frozen=True)
class _Job:
    """What every file needs."""

    folder: Path
    teacher: Teacher | Ensemble
    dataset: Any
    collator: Callable[[list[Any]], Mapping[str, Any]]
    lengths: Sequence[int]
    layout: Layout


def write_cache(
    config: CacheConfig,
    teacher: nn.Module | Teacher | Ensemble,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    key: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0,),
    words: int | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> CachedTeacher:
    """Write what a teacher says about ``dataset``, or go on where an earlier call was stopped.

    What comes out is the same, to the last bit, however often it was stopped.

    Args:
        config: folder, precision, and how many words of a language model are kept (null keeps all outputs).
        teacher: runs on the device it is on, and in its own precision unless it is ``Teacher.under`` autocast.
        dataset: rows with ``input_ids``, as the student will be trained on them; what changes from one reading to the next,
            such as random masks, cannot be kept.
        collator: the one of the training.
        key: what else the rows depend on, by name, such as the tokenizer; a later call with another is refused.
        temperatures: those of the losses that will read the likeliest words.
        words: of the vocabulary, how many count; None for all.
        progress: called with the rows done and all rows, after each file.

    Raises:
        IntegrityError: the folder holds the answers of another teacher, or about other rows; or what is there was changed.
        NonFiniteError: an answer holds a NaN or an infinity.
        ResourceError: too little disk, a disk that fails, or another process at work there.
        MismatchError: rows padded on the left, where the teacher counts places from the first column; a teacher with a decoder
            of its own, which reads more than a row's tokens.
        RecipeError: more words than there are, or a folder with other files.
    """
    folder = Path(config.folder)
    one = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
    one = one.over(words) if isinstance(one, Ensemble) else one
    _refuse_decoders(one)
    full_key = {**(key or {}), **_settings(config, temperatures, words), **_own_key(one, dataset)}
    with claimed(folder):
        manifest = read_manifest(folder)
        if manifest is not None:
            refuse_another(folder, manifest.key, dict.fromkeys(manifest.key, "none") | full_key)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        if manifest is not None:
            manifest = _still_whole(folder, manifest)
        else:
            layout = _layout(config, one, dataset, collator, lengths, temperatures, words)
            manifest = Manifest(full_key, layout)
            check_room(folder, layout.bytes_for(sum(lengths), len(lengths)))
            write_manifest(folder, manifest)
        layout = manifest.layout
        job = _Job(folder, one, dataset, collator, lengths, layout)
        for index, rows in list(enumerate(_pieces(layout)))[len(manifest.shards) :]:
            manifest = manifest.with_shard(write_shard(folder, index, _answers(job, rows)))
            write_manifest(folder, manifest)
            progress(manifest.rows, layout.rows)
    return CachedTeacher.from_folder(folder, key=full_key)


def _refuse_decoders(teacher: Teacher | Ensemble) -> None:
    for model in teacher.models:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise MismatchError(
                f"cache: {type(model).__name__} answers about a target that its decoder reads, but a row is found by its "
                "source alone: another target would get the same answers.\nLearn from the live teacher."
            )


def weights_hash(models: Sequence[Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of every weight and buffer, model after model."""
    digest = hashlib.sha256()
    for model in models:
        refuse_repacked(model, f"cache: {type(model).__name__}")  # before state_dict() changes them once more
        for name, value in sorted(model.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(models: Sequence[Any]) -> str:
    """SHA-256 of what configs say beside the weights: heads, places, activations; not names, versions or words of one call."""
    digest = hashlib.sha256()
    for model in models:
        config = getattr(model, "config", None)
        told: dict[str, Any] = config.to_dict() if config is not None else {}
        told = {name: value for name, value in told.items() if name not in _NO_ANSWER and not name.startswith("_")}
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        digest.update(_adapters(model).encode())
    return digest.hexdigest()


def _adapters(model: Any) -> str:
    """Which adapters answer with it, and by what their products are multiplied; empty without."""
    chosen = getattr(model, "active_adapters", None) if getattr(model, "peft_config", None) else None
    names = chosen() if callable(chosen) else chosen
    scales = {name: layer.scaling for name, layer in model.named_modules() if isinstance(getattr(layer, "scaling", None), dict)}
    return json.dumps([names, scales], sort_keys=True, default=str) if names else ""


def _own_key(teacher: Teacher | Ensemble, dataset: Any) -> dict[str, str]:
    rows = hashlib.sha256()
    for ids in dataset["input_ids"]:
        rows.update(len(ids).to_bytes(8, "little") + np.asarray(ids, np.int64).tobytes())
    found = {"rows": rows.hexdigest(), "teacher": weights_hash(teacher.models), "teacher config": config_hash(teacher.models)}
    teachers = teacher.teachers if isinstance(teacher, Ensemble) else (teacher,)
    orders, first = [each.label_order for each in teachers], teachers[0]
    if any(order is not None and order != sorted(order) for order in orders):
        found["label order"] = ", ".join(map(str, orders))
    names = named_classes(first.model) if first.label_order is None else []
    if len(names) > 1:
        found["labels"] = json.dumps(names)
    if isinstance(teacher, Ensemble):
        found["combine"] = teacher.combine
    return found | autocast_key(teacher.precision)


def _settings(config: CacheConfig, temperatures: Sequence[float], words: int | None) -> dict[str, str]:
    """What of the arguments says what is kept."""
    asked = {"dtype": config.dtype, "top_k": config.top_k, "words": words}
    times = {"temperatures": ", ".join(f"{t:g}" for t in sorted(set(temperatures)))} if config.top_k is not None else {}
    return {name: str(value) for name, value in asked.items() if value is not None} | times


def _still_whole(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest without the first file that is missing or damaged, and those after it: they are written again."""
    whole = Manifest(manifest.key, manifest.layout)
    for shard in manifest.shards:
        if first_fault(folder, Manifest(manifest.key, manifest.layout, (shard,))):
            break
        whole = whole.with_shard(shard)
    return whole


def _layout(
    config: CacheConfig,
    teacher: Teacher | Ensemble,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    lengths: Sequence[int],
    temperatures: Sequence[float],
    words: int | None,
) -> Layout:
    """Settled by one row, when a cache begins."""
    if not lengths:
        raise MismatchError("cache: 0 rows; a teacher has nothing to say about them.")
    batch = _to(collator([dataset[0]]), teacher)
    logits = _say(teacher, batch, words)
    per_token, outputs = logits.ndim == 3, logits.shape[-1]
    if config.top_k is not None and not (per_token and config.top_k <= outputs):
        what = f"{outputs} words" if per_token else "one answer a row, of which all outputs are kept"
        raise RecipeError(f"cache: top_k {config.top_k}, but the teacher has {what}. Lower top_k, or remove it.")
    merged = config.top_k is not None and config.top_k < outputs
    columns = tuple(name for name in COLUMNS if name in batch and name in teacher.accepts)
    moves = check_padding(teacher.models, dataset, collator)
    accepts = tuple(teacher.accepts)
    times = tuple(sorted(set(temperatures))) if merged else ()
    longest, rows = max(lengths), len(lengths)
    batch_rows = min(_BATCH_ROWS, max(1, _LOGITS // (outputs * longest if per_token else outputs)))
    layout = Layout(outputs, per_token, config.top_k, times, config.dtype, columns, accepts, rows, batch_rows, 1, moves)
    shard_rows = min(_SHARD_ROWS, max(1, SHARD_BYTES // layout.bytes_for(longest, 1)))
    return Layout(**vars(layout) | {"shard_rows": shard_rows})


def _pieces(layout: Layout) -> Iterator[range]:
    for start in range(0, layout.rows, layout.shard_rows):
        yield range(start, min(start + layout.shard_rows, layout.rows))


def _answers(job: _Job, rows: range) -> dict[str, list[Any]]:
    """The columns of one file, in the order of the rows; rows of about one length are read together."""
    found: dict[int, dict[str, Any]] = {}
    ordered = sorted(rows, key=lambda row: job.lengths[row])
    for start in range(0, len(ordered), job.layout.batch_rows):
        together = ordered[start : start + job.layout.batch_rows]
        batch = _to(job.collator([job.dataset[row] for row in together]), job.teacher)
        keys = row_keys(batch, job.layout.columns)
        if job.layout.moves:
            refuse_moved(keys)
        logits = _say(job.teacher, batch, job.layout.outputs)
        for i, row in enumerate(together):
            found[row] = {"row_key": keys.keys[i], **_kept(job.layout, _own(logits[i], keys, i, job.layout), row)}
    return {name: [found[row][name] for row in rows] for name in found[rows[0]]}


def _own(logits: Tensor, keys: RowKeys, i: int, layout: Layout) -> Tensor:
    """Of a row of the batch, what is about its own tokens."""
    return logits[keys.starts[i] : keys.starts[i] + keys.lengths[i]] if layout.per_token else logits


def _kept(layout: Layout, logits: Tensor, row: int) -> dict[str, np.ndarray]:
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(f"teacher logits: NaN or infinity for row {row}. Nothing of its file was written.")
    if layout.top_k is None:
        return {"logits": _numbers(logits, layout, row)}
    top = keep(logits, layout.top_k, layout.temperatures)
    found = {"values": _numbers(top.values, layout, row), "ids": top.ids.cpu().numpy().astype(layout.id_dtype)}
    if top.rest:
        found["rest"] = _numbers(torch.stack([top.rest[t] for t in layout.temperatures], dim=-1), layout, row)
    return found


def _numbers(values: Tensor, layout: Layout, row: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = values.float().cpu().numpy().astype(layout.dtype)
    if not np.isfinite(numbers).all():
        raise NonFiniteError(f"teacher logits: {layout.dtype} is too small for row {row}. Use dtype: float32.")
    return numbers


def _say(teacher: Teacher | Ensemble, batch: Mapping[str, Any], words: int | None) -> Tensor:
    outputs = teacher.outputs(batch)
    if "logits" not in outputs:
        raise MismatchError(f"cache: the teacher gives {few(outputs)}; only logits can be kept.")
    logits = teacher.ordered(outputs["logits"])
    if logits.ndim not in (2, 3):
        raise MismatchError(f"teacher logits {list(logits.shape)}: a cache holds one answer a row or a token.")
    return logits[..., :words]


def _to(batch: Mapping[str, Any], teacher: Teacher | Ensemble) -> dict[str, Any]:
    device = next(teacher.models[0].parameters()).device
    unread = [n for n in batch if n in teacher.accepts and n not in (*COLUMNS, "attention_mask")]
    if unread:
        raise MismatchError(f"cache: the teacher reads {few(unread)}; only what follows from a row's tokens can be kept.")
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
