"""Load what was saved and compare it with the model in memory: a difference is an error, not a warning."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.adapters import attach, holds_adapter
from hf_shrink.errors import IntegrityError, MismatchError, ShrinkError
from hf_shrink.headers import check_storage
from hf_shrink.lines import few, first_line
from hf_shrink.loading.align import ALIGNMENT
from hf_shrink.measurement.subjects import at_rest
from hf_shrink.quiet import quiet_loading
from hf_shrink.repacking import disable_cpu_repacking, refuse_repacked


@dataclass(frozen=True)
class Reload:
    """A folder that loads to the same model.

    Attributes:
        max_difference: largest absolute difference of any logit; 0.0, or ``verify`` would have raised.
        num_tensors: weights that were compared bit by bit.
    """

    max_difference: float
    num_tensors: int


def verify(folder: Path, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Reload:
    """Load ``folder`` with ``from_pretrained`` of the model's class and compare every weight, then the logits.

    Both run in eval mode, 4-bit layers without the CPU path that repacks them, weights where a fresh model has them.

    Args:
        folder: what ``save`` wrote.
        model: the model in memory; the training mode of each of its modules is put back, and its weights lie where they lay.
        inputs: one batch for its forward pass.

    Raises:
        IntegrityError: missing, unexpected or mismatched keys (up to ten are named), weights that differ, or logits that do; or
            4-bit layers of ``model`` were repacked for the CPU.
    """
    refuse_repacked(model, folder.name)
    again = load_strictly(folder, type(model), model.device)
    num_tensors = _compare_weights(folder.name, model, again)
    disable_cpu_repacking(model)
    disable_cpu_repacking(again)
    batch = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with at_rest(model), _aligned(model), _aligned(again):
        # In float64: the difference of two bfloat16 numbers may itself round to zero.
        difference = (model(**batch)[0].double() - again(**batch)[0].double()).abs().max().item()
    if difference != 0.0:  # a NaN is different, too
        raise IntegrityError(
            f"{folder.name}: after loading, logits differ from the model in memory by up to {difference:.3g}, not 0.0."
        )
    return Reload(difference, num_tensors)


def load_strictly(folder: Path, kind: type[PreTrainedModel], device: torch.device) -> PreTrainedModel:
    """The model in ``folder`` as ``kind``, in the precision it is stored in, with every weight from the files.

    Raises:
        IntegrityError: missing, unexpected or mismatched keys (up to ten are named), or files that cannot be read.
    """
    _check_storage(folder)
    loader: Any = kind  # with output_loading_info it returns a pair, which its type hint does not say
    try:
        with quiet_loading():
            model, info = loader.from_pretrained(
                folder,
                device_map={"": device},
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that every key arrives in the report
                output_loading_info=True,
            )
            if holds_adapter(folder):
                attach(model, folder)
    except ShrinkError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise IntegrityError(f"{folder.name}: what was saved does not load: {first_line(error)}") from error
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(key for key, *_ in info["mismatched_keys"]),
    }
    keys = [key for group in wrong.values() for key in group]
    if keys:
        counts = ", ".join(f"{len(group)} {what}" for what, group in wrong.items())
        raise IntegrityError(f"{folder.name}: weights do not fit the saved config: {counts}.\n{few(keys, 10)}")
    assert isinstance(model, PreTrainedModel)
    return model


def _check_storage(folder: Path) -> None:
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        check_storage(folder.name, record, folder)
    except MismatchError as error:
        raise IntegrityError(str(error)) from None
    except (OSError, ValueError, AttributeError):
        return  # whoever loads the folder says what is wrong with its config


def _compare_weights(where: str, model: PreTrainedModel, again: PreTrainedModel) -> int:
    """Logits of one batch say nothing of the words that are not in it."""
    theirs: dict[str, Any] = again.state_dict()
    ours: dict[str, Any] = model.state_dict()
    differ = [name for name, tensor in ours.items() if name not in theirs or not _equal(tensor, theirs[name])]
    if differ or ours.keys() != theirs.keys():
        names = differ or sorted(theirs.keys() - ours.keys())
        raise IntegrityError(f"{where}: {len(names)} weights are not the same after loading, first {names[0]}.")
    return len(ours)


@contextmanager
def _aligned(model: PreTrainedModel) -> Iterator[None]:
    """Copy float weights that a file's layout left between two multiples of 64 bytes, where kernels add in another order.

    A model in memory has them as well: those that it was loaded with, from a file that somebody else wrote. Until the end both
    copies are there.
    """
    moved = [(p, p.data) for p in model.parameters() if p.is_floating_point() and p.data_ptr() % ALIGNMENT]
    for parameter, data in moved:
        parameter.data = data.clone()
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    # bitsandbytes rounds the biases of 4-bit layers in place, to the precision it computes in.
    return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours.dtype))
