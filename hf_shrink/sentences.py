"""Models whose answer to a text is one vector: the mean of its tokens' last hidden states, scaled to length 1."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput


@dataclass
class SentenceOutput(ModelOutput):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """What a headless model gives, and the vectors as ``logits`` ``[rows, width]``.

    ``loss`` is there where labels are, and always 0: nobody but a teacher says what a vector should be.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``hidden`` ``[rows, length, width]`` over the tokens where ``mask`` is not 0, of length 1 (arXiv:1908.10084).

    Returns:
        Float32, ``[rows, width]``; a row without a token gives zeros.
    """
    states = hidden.float()
    kept = torch.ones(states.shape[:2], device=states.device) if mask is None else (mask != 0).to(states)
    mean = (states * kept[..., None]).sum(dim=1) / kept.sum(dim=1, keepdim=True).clamp(min=1)
    return F.normalize(mean, dim=-1)


def as_sentence_model(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` itself, a headless one, made to give its sentence vectors as ``logits``; it is saved as what it was."""
    if not gives_sentences(model):
        model.__class__ = _sentence_class(cast(Any, type(model)))
    return model


def gives_sentences(model: Any) -> bool:
    """Whether ``as_sentence_model`` made it, inside adapters or not."""
    return isinstance(getattr(model, "get_base_model", lambda: model)(), _Sentences)


class _Sentences:
    """What all such classes have in common."""


@functools.cache
def _sentence_class(kind: Any) -> Any:
    """A subclass of the same name, so that a saved config names the class that everybody has."""
    plain = kind.forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, labels: Tensor | None = None, **words: Any) -> SentenceOutput:
        given = inspect.signature(plain).bind_partial(self, *args, **words).arguments
        words.pop("return_dict", None)
        found = plain(self, *args, **words, return_dict=True)
        logits = pooled(found.last_hidden_state, given.get("attention_mask"))
        return SentenceOutput(
            loss=None if labels is None else logits.sum() * 0.0,
            logits=logits,
            last_hidden_state=found.last_hidden_state,
            hidden_states=found.get("hidden_states"),
            attentions=found.get("attentions"),
        )

    signature = inspect.signature(plain)
    before = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    after = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    named = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = signature.replace(parameters=[*before, named, *after])  # type: ignore[attr-defined]
    return type(kind.__name__, (_Sentences, kind), {"forward": forward, "__module__": kind.__module__})
