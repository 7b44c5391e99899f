"""A teacher with another tokenizer: it reads the same text in tokens of its own, and answers at the student's positions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_shrink.columns import TEACHER_COLUMNS, TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError


class CrossingTeacher(Teacher):
    """A causal language model whose rows lie beside the student's in the batch, in the columns of ``hf_shrink.columns``.

    Args:
        model: as for ``Teacher``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.accepts = TEACHER_COLUMNS

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any], **words: Any) -> Mapping[str, Any]:
        """``logits`` at the positions of the student's rows, ``[batch, length, words of the teacher]``.

        What stands where the student's position has no counterpart is of no use: ``paired`` says where that is.

        Raises:
            MismatchError: the batch lacks the teacher's columns, or they do not fit.
        """
        own = {"input_ids": _column(inputs, TEACHER_IDS), "attention_mask": _column(inputs, TEACHER_MASK)}
        logits = super().outputs(own, **words)["logits"]
        places = _column(inputs, TEACHER_PLACES).to(logits.device)
        if len(places) != len(logits) or int(places.max()) >= logits.shape[1]:
            raise MismatchError(
                f"distillation: {TEACHER_PLACES} of {len(places)} rows, up to {int(places.max())}, do not fit the teacher's "
                f"{list(logits.shape[:2])} tokens.\nMake all three columns at once, by hf_shrink.data.two_tokenizers."
            )
        rows = torch.arange(len(places), device=logits.device)[:, None]
        return {"logits": logits[rows, places.clamp(min=0)]}


def paired(inputs: Mapping[str, Any]) -> Tensor:
    """True at the student's positions that have a counterpart, ``[batch, length]``."""
    return _column(inputs, TEACHER_PLACES) >= 0


def _column(inputs: Mapping[str, Any], name: str) -> Tensor:
    column = inputs.get(name)
    if not isinstance(column, Tensor):
        raise MismatchError(
            f"distillation: uld needs rows in the teacher's tokens, too, but a batch is without {name!r}.\n"
            "Make rows and collator by in_both and both_collator of hf_shrink.data.two_tokenizers; a recipe does."
        )
    return column
