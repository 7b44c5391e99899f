"""The table of distillation losses. Reduction happens in one place, the ``Distiller``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from hf_shrink.distillation.across import uld
from hf_shrink.distillation.attention import attention_kl, attention_mse
from hf_shrink.distillation.divergences import (
    binary_kl,
    decoupled_kd,
    forward_kl,
    jsd,
    logit_mse,
    reverse_kl,
    soft_cross_entropy,
    symmetric_kl,
    total_variation,
)
from hf_shrink.distillation.features import hidden_cosine, hidden_mse, normalised_mse

LossFunction: TypeAlias = Callable[..., Tensor]
Reads = Literal["logits", "embeddings", "hidden", "attentions", "queries", "keys", "values"]

ATTENTION_READS = frozenset({"attentions", "queries", "keys", "values"})
"""What comes out of attention blocks and is only there where somebody watches them."""


@dataclass(frozen=True)
class Loss:
    """An entry of the table.

    Attributes:
        function: ``(student, teacher, **takes) -> [...]``, float32, one number a position.
        reads: what of the two models it compares; only what some loss reads is asked for.
        takes: the options it has beside: ``temperature``, ``beta``, ``labels``.
        outputs: for losses on logits, what they may be: ``classes`` of which one is right, ``places`` in a text, of which
            one is and padding is none, ``labels`` of which several may be, ``values``, ``vectors`` of texts, or ``words`` of
            two vocabularies.
        layers: for losses on layers, which pairs are compared where a term does not say.
        merges: whether it is still a loss between two distributions where some of the classes are counted as one.
    """

    function: LossFunction
    reads: Reads = "logits"
    takes: frozenset[str] = frozenset()
    outputs: frozenset[str] = field(default=frozenset({"classes", "places"}))
    layers: Literal["uniform", "last"] | None = None
    merges: bool = False

    @property
    def crosses(self) -> bool:
        """Whether it compares language models of which each has a tokenizer of its own."""
        return "words" in self.outputs


_SOFT = frozenset({"temperature"})

LOSSES: Mapping[str, Loss] = {
    "forward_kl": Loss(forward_kl, takes=_SOFT, merges=True),
    "reverse_kl": Loss(reverse_kl, takes=_SOFT, merges=True),
    "symmetric_kl": Loss(symmetric_kl, takes=_SOFT, merges=True),
    "jsd": Loss(jsd, takes=_SOFT | {"beta"}, merges=True),
    "total_variation": Loss(total_variation, takes=_SOFT, merges=True),
    "soft_cross_entropy": Loss(soft_cross_entropy, takes=_SOFT, merges=True),
    "uld": Loss(uld, takes=_SOFT, outputs=frozenset({"words"})),
    "decoupled_kd": Loss(decoupled_kd, takes=_SOFT | {"beta", "labels"}),
    "logit_mse": Loss(logit_mse, outputs=frozenset({"classes", "labels", "values", "vectors"})),
    "sentence_cosine": Loss(hidden_cosine, outputs=frozenset({"vectors"})),
    "binary_kl": Loss(binary_kl, takes=_SOFT, outputs=frozenset({"labels"})),
    "embedding_mse": Loss(hidden_mse, reads="embeddings"),
    "hidden_mse": Loss(hidden_mse, reads="hidden", layers="uniform"),
    "hidden_cosine": Loss(hidden_cosine, reads="hidden", layers="uniform"),
    "pkd": Loss(normalised_mse, reads="hidden", layers="uniform"),
    "attention_kl": Loss(attention_kl, reads="attentions", layers="uniform"),
    "attention_mse": Loss(attention_mse, reads="attentions", layers="uniform"),
    "query_relation_kl": Loss(attention_kl, reads="queries", layers="last"),
    "key_relation_kl": Loss(attention_kl, reads="keys", layers="last"),
    "value_relation_kl": Loss(attention_kl, reads="values", layers="last"),
}
