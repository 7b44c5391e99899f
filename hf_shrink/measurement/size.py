"""How large a model is: weights by count, bytes by file."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_shrink.adapters import FOLDER as ADAPTER
from hf_shrink.families import embedding_parameters
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.subjects import Subject, precision_of
from hf_shrink.measurement.values import Measurement
from hf_shrink.onnx_model import OnnxModel
from hf_shrink.repacking import repacked


def parameters(subject: Subject, config: MeasurementConfig) -> list[Measurement]:
    """Weights in all, outside the embeddings, and other than zero; each shared one counts once. Nothing for a graph."""
    if subject.model is None or isinstance(subject.model, OnnxModel):
        return []
    model: nn.Module = subject.model
    embeddings = sum(logical_size(p) for p in embedding_parameters(model).values())
    total = sum(logical_size(p) for p in model.parameters())
    setting = precision_of(model)
    counts = {"parameters": total, "parameters_non_embedding": total - embeddings, "parameters_non_zero": non_zero(model)}
    return [
        Measurement(name=name, value=count, unit="parameters", setting=setting)
        for name, count in counts.items()
        if count is not None
    ]


def held(subject: Subject, config: MeasurementConfig) -> list[Measurement]:
    """Bytes of the weights where they lie, with scales and buffers, each storage once; nothing for a graph."""
    if subject.model is None or isinstance(subject.model, OnnxModel):
        return []
    storages: dict[int, int] = {}
    for tensor in _tensors(subject.model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    setting = precision_of(subject.model)
    return [Measurement(name="bytes_in_memory", value=sum(storages.values()), unit="bytes", setting=setting)]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and the scales and tables that bitsandbytes keeps beside its weights."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        state = getattr(parameter, "quant_state", None)
        nested = getattr(state, "state2", None)
        found = [getattr(parameter, "SCB", None)]
        found += [getattr(each, name, None) for each in (state, nested) for name in ("absmax", "code", "offset")]
        yield from (each for each in found if isinstance(each, Tensor))


def disk(subject: Subject, config: MeasurementConfig) -> list[Measurement]:
    """Bytes of the weight files in the subject's folder; nothing where it has no folder or the folder no such files."""
    if isinstance(subject.model, OnnxModel):
        return [Measurement(name="bytes_on_disk", value=subject.model.path.stat().st_size, unit="bytes", setting="*.onnx")]
    size = 0 if subject.folder is None else weight_bytes(subject.folder)
    return [Measurement(name="bytes_on_disk", value=size, unit="bytes", setting="*.safetensors")] if size else []


def weight_bytes(folder: Path) -> int:
    """Bytes of ``*.safetensors`` in ``folder`` and of its adapter; the stages of a run lie below it, too, and do not count."""
    return sum(path.stat().st_size for place in (folder, folder / ADAPTER) for path in place.glob("*.safetensors"))


def logical_size(parameter: Tensor) -> int:
    """How many weights a parameter stands for: bitsandbytes packs two 4-bit weights into one byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def non_zero(model: nn.Module) -> int | None:
    """Weights other than zero as the forward pass sees them: quantising rounds small ones to zero, so fewer may remain.

    None where a 4-bit weight has been repacked for the CPU's fast path: its layout is no longer readable.
    """
    if repacked(model):
        return None
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += int(torch.count_nonzero(parameter.detach() if state is None else _unpacked(parameter)))
    return total


def _unpacked(parameter: nn.Parameter) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight: Tensor = dequantize_bnb_weight(parameter)
    return weight
