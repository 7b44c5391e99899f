"""See what attention blocks do: an attention whose probabilities, queries, keys and values can be read while a model runs.

The stock fast attention gives no probabilities, and the stock plain one gives them after dropout, where a zero is no
probability. This one computes what the plain one does and hands out what came before dropout, only for the layers asked for.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from hf_shrink.errors import MismatchError
from hf_shrink.families import family_of, stacks_of

NAME = "hf_shrink_watched"
NOT_REENTRANT = "Leave use_reentrant out of gradient_checkpointing_kwargs, or set it to False."
_NOT_WITH = ("softcap", "position_bias", "s_aux", "head_mask")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attended:
    """One attention block at work.

    Attributes:
        queries, keys, values: ``[batch, heads, length, head_dim]``, after positions were turned in; keys and values may have
            fewer heads.
        log_probabilities: ``[batch, query heads, queries, keys]``, float32, before dropout.
        mask: what was added to the scores, ``[batch or 1, 1, queries, keys]``, or None.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_probabilities: Tensor
    mask: Tensor | None


_watched: dict[nn.Module, list[tuple[Attended, bool]]] = {}
"""What each watched block did, and whether it could get a gradient for it."""


def watched_blocks(model: Any, who: str) -> list[nn.Module]:
    """The attention blocks of ``model``, first layer first, which can be watched inside ``watchable``.

    Results there are those of the plain attention. Said in the log, because the fast one is given up meanwhile.

    Raises:
        RecipeError: a model family that is not in the table.
        MismatchError: a model with an encoder and a decoder.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    blocks = attention_blocks(base, who)
    before = base.config._attn_implementation
    logger.warning(
        "Losses on attention: the %s changes from %s attention to one that can be watched, for the training.", who, before
    )
    return blocks


@contextmanager
def watchable(models: Sequence[Any]) -> Iterator[None]:
    """While it lasts, the attention of ``models`` can be watched; then each has what it had before, the fast one too."""
    bases = [getattr(model, "get_base_model", lambda model=model: model)() for model in models]
    before = [base.config._attn_implementation for base in bases]
    try:
        for base, had in zip(bases, before, strict=True):
            if had != NAME:
                base.set_attn_implementation(NAME)
        yield
    finally:
        for base, had in zip(bases, before, strict=True):
            if had != NAME:
                base.set_attn_implementation(had)


def attention_blocks(model: Any, who: str) -> list[nn.Module]:
    """The attention blocks of a model without adapters, first layer first. Errors as in ``watched_blocks``."""
    stacks = stacks_of(model, family_of(model, f"distillation: attention of the {who}"))
    if len(stacks) > 1:
        raise MismatchError(f"distillation: the {who} has an encoder and a decoder; losses on attention know one stack only.")
    (stack, layers), *_ = stacks
    return [layer.get_submodule(stack.attentions[0].module) for layer in layers]


@contextmanager
def watching(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, Attended]]:
    """Collect by layer what ``blocks`` do while it lasts; filled when it ends. What runs again for its gradient is not seen.

    Raises:
        MismatchError: a block in training ran without a gradient where one is wanted: what is seen of it could teach nothing.
    """
    seen: dict[int, Attended] = {}
    _watched.update({block: [] for block in blocks.values()})
    try:
        yield seen
        for layer, block in blocks.items():
            assert len(_watched[block]) == 1, f"attention of layer {layer} ran {len(_watched[block])} times"
            seen[layer], learns = _watched[block][0]
            if block.training and torch.is_grad_enabled() and not learns:
                raise MismatchError(
                    f"distillation: attention of layer {layer} runs without a gradient, under reentrant checkpointing: "
                    f"losses on it would teach nothing.\n{NOT_REENTRANT}"
                )
    finally:
        for block in blocks.values():
            del _watched[block]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    if strange := [name for name in _NOT_WITH if more.get(name) is not None]:
        raise MismatchError(f"distillation: losses on attention do not know {strange[0]!r}, which this model's attention uses.")
    shared = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(shared, dim=1).transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = scores.float() if attention_mask is None else scores.float() + attention_mask
    log_probabilities = F.log_softmax(scores, dim=-1)  # watched or not: what runs again for its gradient must do the same
    if module in _watched:
        attended = Attended(query, key, value, log_probabilities, attention_mask)
        _watched[module].append((attended, torch.is_grad_enabled()))
    weights = F.dropout(log_probabilities.exp().to(query.dtype), p=dropout, training=module.training)
    return (weights @ value.repeat_interleave(shared, dim=1)).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)
