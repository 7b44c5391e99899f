"""What of one forward the losses on layers compare, at the positions that count."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from hf_shrink.distillation.attention import relation
from hf_shrink.distillation.losses import Reads
from hf_shrink.distillation.watching import Attended
from hf_shrink.errors import MismatchError


@dataclass(frozen=True)
class Seen:
    """One model at work on one batch.

    Attributes:
        hidden: the states before the first and after each layer, ``[batch, length, width]`` each; empty where not asked for.
        attended: by layer, those that are watched.
    """

    hidden: tuple[Tensor, ...]
    attended: Mapping[int, Attended]

    def rows_not_finite(self, tokens: Tensor) -> list[int]:
        """Rows of the batch in which something is a NaN or an infinity at ``tokens``, ``[batch, length]``."""
        states = [*self.hidden, *(x.queries.transpose(1, 2).flatten(2) for x in self.attended.values())]
        states += [
            x.flatten(2) for seen in self.attended.values() for x in (seen.keys.transpose(1, 2), seen.values.transpose(1, 2))
        ]
        bad = sum((~state.isfinite().all(dim=-1)).to(tokens.device) & tokens for state in states)
        return torch.as_tensor(bad).any(dim=-1).nonzero().flatten().tolist()


@dataclass(frozen=True)
class Tokens:
    """The tokens over which losses on layers run.

    Attributes:
        kept: True at a token that counts, ``[batch, length]``.
        shares: what each of them weighs, ``[tokens]``, so that a row with one label weighs 1 whatever its length.
    """

    kept: Tensor
    shares: Tensor


def tokens_of(kept: Tensor, inputs: Mapping[str, Any], like: Tensor) -> Tokens:
    """The tokens of a batch that count.

    Args:
        kept: positions that count: ``[batch, length]`` where each token has a label, ``[batch]`` where each row has one. Then
            all real tokens of a row count, and weigh 1 together.
        inputs: the batch, maybe with ``attention_mask``.
        like: hidden states or an attention's queries, for their batch and length: ``[batch, length]``.
    """
    if kept.shape == like.shape:
        return Tokens(kept, torch.ones(int(kept.sum()), device=kept.device))
    attention = inputs.get("attention_mask")
    real = torch.ones_like(like, dtype=torch.bool) if attention is None else attention.bool()
    if kept.ndim != 1 or real.shape != like.shape:
        raise MismatchError(
            f"distillation: hidden states {list(like.shape)} do not stand at the labels {list(kept.shape)} and the attention "
            f"mask {list(real.shape)}.\nLosses on layers need one state for each token."
        )
    real = real & kept[:, None]
    lengths = real.sum(dim=1, keepdim=True).clamp(min=1)
    return Tokens(real, (1 / lengths).expand_as(like)[real])


def compared(
    reads: Reads, student: Seen, teacher: Seen, pair: tuple[int, int], tokens: Tensor, where: str
) -> tuple[Tensor, Tensor]:
    """What a loss gets from one pair of layers: the same thing of both models at ``tokens``, ``[tokens, ...]`` each.

    Raises:
        MismatchError: other lengths, or attention of other head counts.
    """
    ours, theirs = pair
    if reads in ("hidden", "embeddings"):
        offset = 0 if reads == "embeddings" else 1
        return _at(student.hidden[ours + offset], tokens, where), _at(teacher.hidden[theirs + offset], tokens, where)
    one, other = student.attended[ours], teacher.attended[theirs]
    if reads == "attentions":
        heads = one.log_probabilities.shape[1], other.log_probabilities.shape[1]
        if heads[0] != heads[1]:
            raise MismatchError(
                f"{where}: layer {ours} of the student has {heads[0]} heads, layer {theirs} of the teacher {heads[1]}.\n"
                "Use value_relation_kl, query_relation_kl or key_relation_kl, which compare any head counts."
            )
        return tuple(_at(x.log_probabilities.transpose(1, 2), tokens, where) for x in (one, other))  # type: ignore[return-value]
    groups = gcd(getattr(one, reads).shape[1], getattr(other, reads).shape[1])
    return tuple(_at(relation(getattr(x, reads), x.mask, groups=groups), tokens, where) for x in (one, other))  # type: ignore[return-value]


def _at(values: Tensor, tokens: Tensor, where: str) -> Tensor:
    if values.shape[:2] != tokens.shape:
        raise MismatchError(f"{where}: states for {list(values.shape[:2])} tokens, but the batch has {list(tokens.shape)}.")
    return values[tokens.to(values.device)].to(tokens.device)
