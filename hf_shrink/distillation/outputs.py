"""What the logits of two models are, and whether a loss can compare them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hf_shrink.distillation.config import LossTerm
from hf_shrink.distillation.losses import Loss, LossFunction
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.errors import MismatchError
from hf_shrink.lines import few
from hf_shrink.tasks import SENTENCES

Kind = Literal["classes", "labels", "places", "values", "vectors", "words"]
OUTPUTS: Mapping[str | None, Kind] = {
    "multi_label_classification": "labels",
    "regression": "values",
    "question-answering": "places",
    SENTENCES: "vectors",
}
"""What the problem type of a config, or else the task, says of the outputs; all others are classes."""
_NOWHERE = -1e4
"""A logit whose probability is 0 in every precision, and that is a number: infinity times 0 would be none."""
_MEANS = {
    "classes": "classes of which one is right",
    "labels": "labels of which several may be right",
    "places": "places in a text, padding aside",
    "values": "values",
    "vectors": "vectors of texts",
    "words": "the words of causal language models with two tokenizers",
}
_FITS = {
    "classes": "forward_kl",
    "places": "forward_kl",
    "labels": "binary_kl",
    "values": "logit_mse",
    "vectors": "sentence_cosine",
    "words": "uld",
}


def check_outputs(
    student: Tensor, teacher: Tensor, labels: Tensor, kept: Tensor, terms: Mapping[str, LossTerm], problem_type: str | None
) -> None:
    """Refuse logits that do not stand side by side, and losses made for another kind of output.

    Args:
        student, teacher: logits ``[..., classes]``.
        labels: of the batch; floats where they are no classes.
        kept: one boolean a position.
        terms: those that read logits.
        problem_type: what the student's config says; None where it leaves it to the labels.

    Raises:
        MismatchError: other shapes, or a loss that would teach the wrong thing without an error.
    """
    check_shapes(student, teacher, "student and teacher logits")
    kind = kind_of(student, labels, problem_type)
    for name, term in terms.items():
        if problem := problem_with(term.loss, kind, f"logits {list(student.shape)} with these labels are"):
            raise MismatchError(f"distillation: {name} {problem}")
    if kept.numel() != student[..., 0].numel():
        raise MismatchError(
            f"distillation: labels {list(labels.shape)} give no class to each position of logits {list(student.shape)}."
        )


def logits_of(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
    """What a model's losses on logits compare, ``[..., classes]``.

    Of a model for spans ``[batch, 2, length]``: where the piece begins and where it ends. The classes are the tokens, and
    padding is none of them.

    Raises:
        MismatchError: the outputs hold neither.
    """
    if "logits" in outputs:
        logits: Tensor = outputs["logits"]
        return logits
    if "start_logits" not in outputs or "end_logits" not in outputs:
        raise MismatchError(f"distillation: no logits among the outputs {few(outputs)}. Use a model with the head of a task.")
    both = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)
    mask = inputs.get("attention_mask")
    return both if mask is None else both.masked_fill(~mask.bool()[:, None, :].to(both.device), _NOWHERE)


def problem_with(loss: str | Loss | LossFunction, kind: Kind, outputs: str) -> str | None:
    """Why a loss cannot compare outputs of a kind, and which one can; None where it can, as losses on layers always.

    Args:
        loss: a name of ``LOSSES``, or one of a user's own.
        kind: what the outputs are.
        outputs: how the sentence calls them, with its verb.
    """
    found = as_loss(loss)
    if found.reads != "logits" or kind in found.outputs:
        return None
    return f"compares {_MEANS[min(found.outputs)]}, but {outputs} {_MEANS[kind]}.\nUse {_FITS[kind]}."


def check_shapes(one: Tensor, other: Tensor, what: str) -> None:
    """Refuse two tensors of different shapes, which might broadcast."""
    if one.shape != other.shape:
        raise MismatchError(
            f"distillation: {what} {list(one.shape)} and {list(other.shape)}; both need the same shape.\n"
            "Give both models the same labels and vocabulary."
        )


def kind_of(logits: Tensor, labels: Tensor, problem_type: str | None) -> Kind:
    """As transformers tells them apart: one output is a value, several with fractional labels are labels."""
    if problem_type == "question-answering":
        return "places"
    if problem_type == SENTENCES:
        return "vectors"
    if logits.shape[-1] == 1 or problem_type == "regression":
        return "values"
    return "labels" if labels.is_floating_point() else "classes"
