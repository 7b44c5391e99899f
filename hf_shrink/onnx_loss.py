"""The loss of a graph's outputs, as the model that it was made from computes it: for loops that evaluate with labels."""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import (
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForQuestionAnsweringLoss,
    ForSequenceClassificationLoss,
)

from hf_shrink.errors import MismatchError


def loss_of(
    outputs: Mapping[str, Tensor],
    labels: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    config: PreTrainedConfig,
    *,
    causal: bool,
    where: str,
) -> Tensor:
    """Mean loss over the rows or tokens that have a label.

    Args:
        outputs: of the graph: ``logits``, or ``start_logits`` and ``end_logits``.
        labels: as the model takes them; -100 is no label.
        start, end: first and last token of each row's answer.
        config: of the model.
        causal: whether logits are for the token after.
        where: what to call the graph.

    Raises:
        MismatchError: labels that do not belong to these outputs.
    """
    logits = outputs.get("logits")
    loss: Tensor | None = None
    if labels is None and start is not None and end is not None and "start_logits" in outputs:
        loss = ForQuestionAnsweringLoss(outputs["start_logits"], outputs["end_logits"], start, end)  # type: ignore[no-untyped-call]
    elif labels is not None and start is None and end is None and logits is not None:
        if logits.dim() == 2:
            loss = ForSequenceClassificationLoss(labels, logits, config)
        else:  # a label for each token: its class, or its word, and the config counts classes alone
            loss = (ForCausalLMLoss if causal else ForMaskedLMLoss)(logits, labels, logits.shape[-1])
    if loss is None:
        all_three = {"labels": labels, "start_positions": start, "end_positions": end}
        given = ", ".join(name for name, value in all_three.items() if value is not None)
        raise MismatchError(f"{where}: no loss of {', '.join(outputs)} from {given} alone; leave that out.")
    return loss
