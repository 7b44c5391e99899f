"""The teacher: frozen, in evaluation mode, never saved."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_shrink.columns import LABELS
from hf_shrink.distillation.heads import forward_as
from hf_shrink.distillation.outputs import logits_of
from hf_shrink.errors import MismatchError
from hf_shrink.own_forward import unwrap_forward

_NOT_FOR_THE_TEACHER = {*LABELS, "return_dict", "kwargs", "args"}


class Teacher:
    """A model whose logits a student learns from.

    Args:
        model: a transformers model with ``logits`` among its outputs. Its parameters stop asking for gradients, it is put
            into evaluation mode, and a training of its own in 16 bits no longer says what it computes in; it may be quantised.
        label_order: class ``i`` of the student is class ``label_order[i]`` of the teacher; None where both agree.

    Attributes:
        precision: what its products are taken in, as under autocast; None for the one it was loaded in.

    Raises:
        MismatchError: ``label_order`` is not a permutation, or the model does not say what of a batch it reads.
    """

    def __init__(self, model: nn.Module, *, label_order: Sequence[int] | None = None) -> None:
        if label_order is not None and sorted(label_order) != list(range(len(label_order))):
            raise MismatchError(f"teacher: label_order {list(label_order)} is not a permutation of 0..{len(label_order) - 1}.")
        unwrap_forward(model)
        self.model = model.requires_grad_(False).eval()
        self.label_order = None if label_order is None else list(label_order)
        forward = getattr(model, "get_base_model", lambda: model)().forward
        self.precision: torch.dtype | None = None
        self.reads = tuple(name for name in inspect.signature(forward).parameters if name not in _NOT_FOR_THE_TEACHER)
        if not self.reads:
            raise MismatchError(
                f"teacher: {type(model).__name__} does not name what it reads, so nothing of a batch would reach it.\n"
                "Pass the model itself, not what torch.compile made of it."
            )
        self.accepts = self.reads

    def under(self, autocast: torch.dtype | None) -> Self:
        """The same, answering as a student does that is trained under autocast to ``autocast``; None for without.

        So that a student that is its teacher has nothing to learn. A teacher that was loaded in 16 bits, or quantised, keeps
        what it has.
        """
        same = copy.copy(self)
        plain = all(parameter.dtype == torch.float32 for parameter in self.model.parameters())
        same.precision = autocast if plain else None
        return same

    def to(self, device: torch.device) -> None:
        """Move there, unless it is quantised or was spread over devices when it was loaded: then it stays where it is."""
        placed = getattr(self.model, "hf_device_map", None) or getattr(self.model, "is_quantized", False)
        if (
            not placed
            and not getattr(self.model, "is_loaded_in_8bit", False)
            and not getattr(self.model, "is_loaded_in_4bit", False)
        ):
            self.model.to(device)

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits ``[..., classes]`` of a batch, without gradient, classes in the student's order."""
        return self.ordered(logits_of(self.outputs(inputs), inputs))

    def ordered(self, logits: Tensor) -> Tensor:
        """The model's logits with the classes in the student's order.

        Raises:
            MismatchError: the order has another number of classes.
        """
        if self.label_order is None:
            return logits
        if len(self.label_order) != logits.shape[-1]:
            raise MismatchError(f"teacher: label_order has {len(self.label_order)} classes, the logits {logits.shape[-1]}.")
        return logits[..., self.label_order]

    @property
    def models(self) -> list[Any]:
        """The one that teaches."""
        return [self.model]

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any], **words: Any) -> Mapping[str, Any]:
        """What the model gives for a batch, without gradient; ``words`` go to its forward."""
        if self.model.training:
            self.model.eval()
        batch = {name: value for name, value in inputs.items() if name in self.reads}
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            batch |= decoder_inputs(self.model, inputs)
        if "use_cache" in self.reads:
            batch["use_cache"] = False
        with self._autocast():
            found: Mapping[str, Any] = self.model(**batch, **words, return_dict=True)
        return found

    @torch.no_grad()
    def before(self, head: nn.Linear | None, inputs: Mapping[str, Any]) -> Tensor:
        """What ``head``, the model's last product, would read, ``[batch, length, width]``; the product is not taken."""
        assert head is not None
        with forward_as(head, lambda hidden: hidden):
            hidden: Tensor = self.outputs(inputs)["logits"]
        return hidden

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.precision)


def decoder_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the decoder of ``model`` reads: what the batch says, else its labels behind the start token, as a student's does.

    Raises:
        MismatchError: the batch has neither, or the model does not say how it makes the one of the other.
    """
    if isinstance(given := inputs.get("decoder_input_ids"), Tensor):
        return {"decoder_input_ids": given}
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is None or not isinstance(labels := inputs.get("labels"), Tensor):
        raise MismatchError(f"teacher: {type(model).__name__} has a decoder; give batches with labels or decoder_input_ids.")
    return {"decoder_input_ids": make(labels)}
