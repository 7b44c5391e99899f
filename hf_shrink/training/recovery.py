"""Adapters beside a quantised model that start as what quantising took away: ready to use, or to be trained further."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.bitsandbytes import settle, stored_bits
from hf_shrink.quantization.low_rank import input_moments, low_rank
from hf_shrink.repacking import refuse_repacked
from hf_shrink.targets import features, oriented


def with_correction(
    model: PreTrainedModel,
    small: PreTrainedModel,
    *,
    rank: int,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
) -> PeftModel:
    """``small`` with LoRA adapters on every quantised layer that give back what quantising took, as far as ``rank`` can.

    Nothing is trained. With ``calibration`` the error of each layer's outputs is made least (QERA, arXiv:2410.06040), without
    it that of its weights, where LoftQ (arXiv:2310.08659) starts. ``save_pretrained`` writes the adapters alone, for ``peft``
    on top of the saved ``small``; ``ShrinkTrainer`` trains them further, with ``model`` as the teacher.

    Args:
        model: what ``small`` was made from; stays as it is.
        small: ``quantize(model, ...)``; becomes the base of what is returned.
        rank: of the adapters; layers that are narrower get as much as they can have. ``(in + out) * rank`` numbers a layer.
        calibration: batches (keyword arguments of the forward pass), the more tokens the better: a few thousand.

    Raises:
        RecipeError: a rank below 1, or a calibration without batches.
        MismatchError: ``small`` is not a quantised copy of ``model``.
        IntegrityError: an evaluation has repacked the 4-bit weights of ``small`` for the CPU.
    """
    if rank < 1:
        raise RecipeError(f"recovery: rank {rank}; give 1 or more.")
    batches = None if calibration is None else [{k: v for k, v in batch.items() if k != "labels"} for batch in calibration]
    if batches is not None and not batches:
        raise RecipeError("recovery: a calibration without batches; give some, or none at all.")
    errors = {name: _error(model, small, name, width) for name, width in _quantized(small).items()}
    start = _start(model, errors, rank, batches)
    adapted = _adapted(small, {name: len(a) for name, (a, _) in start.items()}, rank)
    for name, (a, b) in start.items():
        layer: Any = adapted.get_base_model().get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b)
    return adapted.eval()


def with_adapters(small: PreTrainedModel, *, rank: int) -> PeftModel:
    """``small`` with adapters on every quantised layer that change nothing before they are trained; see ``with_correction``."""
    if rank < 1:
        raise RecipeError(f"recovery: rank {rank}; give 1 or more.")
    sizes = {name: features(small.get_submodule(name)) for name in _quantized(small)}  # type: ignore[arg-type]
    return _adapted(small, {name: min(rank, *size) for name, size in sizes.items()}, rank).eval()


def _quantized(small: PreTrainedModel) -> Mapping[str, int]:
    if not (bits := stored_bits(small)):
        raise MismatchError("recovery: no layer of the model is quantised; call quantize first.")
    refuse_repacked(small, "recovery")
    return bits


def _adapted(small: PreTrainedModel, ranks: Mapping[str, int], rank: int) -> PeftModel:
    """Adapters of the rank that each layer can have; ``lora_alpha`` equal to it, so that ``B @ A`` counts as it is."""
    less = {name: own for name, own in ranks.items() if own != rank}
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(ranks), rank_pattern=less, alpha_pattern=less, lora_dropout=0.0
    )
    settle(small)
    adapted = get_peft_model(small, config)
    assert isinstance(adapted, PeftModel)
    return adapted


@torch.no_grad()
def _error(model: PreTrainedModel, small: PreTrainedModel, name: str, width: int) -> Tensor:
    """``[out, in]``: the float weight minus the one that the quantised layer multiplies by."""
    try:
        weight = oriented(model.get_submodule(name))  # type: ignore[arg-type]
    except AttributeError:
        raise MismatchError(f"recovery: {name} is quantised, and {type(model).__name__} has no such layer.") from None
    stored = backend_for(width).restored(small.get_submodule(name))
    if weight.shape != stored.shape:
        raise MismatchError(f"recovery: {name} is {list(weight.shape)} in float and {list(stored.shape)} quantised.")
    return weight.detach().float() - stored.float()


@torch.no_grad()
def _start(
    model: PreTrainedModel, errors: dict[str, Tensor], rank: int, batches: list[dict[str, Tensor]] | None
) -> dict[str, tuple[Tensor, Tensor]]:
    def most(name: str) -> int:
        return min(rank, *features(model.get_submodule(name)))  # type: ignore[arg-type]

    if batches is None:
        return {name: low_rank(error, most(name)) for name, error in errors.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # type: ignore[no-untyped-call]
    try:
        found = input_moments(model, list(errors), batches)
        weighted = {name: low_rank(errors[name], most(name), moment) for name, moment in found}
    finally:
        for module, training in modes:
            module.training = training
    unread = {name: low_rank(error, most(name)) for name, error in errors.items() if name not in weighted}
    return {name: (weighted | unread)[name] for name in errors}
