"""A vocabulary seen as a few words and the rest: what the losses compare where a teacher kept only its likeliest words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """The likeliest words of a teacher at each position.

    Attributes:
        values: their logits less the highest, float32, ``[..., k]``.
        ids: which words they are, int64, ``[..., k]``.
        rest: by temperature, the logit that all other words have together, less the highest, ``[...]``; empty where every
            word is kept.
    """

    values: Tensor
    ids: Tensor
    rest: Mapping[float, Tensor]

    def __getitem__(self, where: Tensor | slice) -> "Kept":
        """These positions alone, ``[positions, ...]``; ``where`` is one boolean a position, or a slice of the first axis."""
        rest = {temperature: values[where] for temperature, values in self.rest.items()}
        return Kept(self.values[where], self.ids[where], MappingProxyType(rest))

    def __len__(self) -> int:
        """Of the first axis."""
        return len(self.values)

    def to(self, device: torch.device) -> "Kept":
        """The same on ``device``."""
        rest = {temperature: values.to(device) for temperature, values in self.rest.items()}
        return Kept(self.values.to(device), self.ids.to(device), MappingProxyType(rest))

    def logits(self, temperature: float) -> Tensor:
        """Logits of the k words and the rest at ``temperature``, ``[..., k + 1]``, or ``[..., k]`` where there is no rest."""
        return torch.cat([self.values, self.rest[temperature][..., None]], dim=-1) if self.rest else self.values


def keep(logits: Tensor, k: int, temperatures: Sequence[float]) -> Kept:
    """The ``k`` likeliest words, and the rest together at each temperature.

    Args:
        logits: finite floats, ``[..., words]``.
        k: 1 to words.
        temperatures: above 0, no unit; those that losses will ask for.
    """
    logits = logits.detach().float()
    top = logits.topk(k, dim=-1)
    highest = top.values[..., :1]
    merged = {} if k == logits.shape[-1] else {t: rest_of(logits, top.indices, t) - highest[..., 0] for t in temperatures}
    return Kept(top.values - highest, top.indices, MappingProxyType(merged))


def merge(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Logits of the words ``ids`` and of all others together, of which the softmax at ``temperature`` is that of ``logits``
    with the others' probabilities added up.

    A loss between two distributions merged alike is a loss over k + 1 outcomes. Where it is an f-divergence (``forward_kl``,
    ``reverse_kl``, ``symmetric_kl``, ``jsd``, ``total_variation``) it is never above the loss over all words, because merging
    outcomes never makes two distributions easier to tell apart (the data processing inequality; Cover and Thomas, Elements of
    Information Theory, 2.8), equal to it where every word is kept, and 0 where student and teacher agree.

    Args:
        logits: floats, ``[..., words]``; may ask for a gradient.
        ids: different words at each position, ``[..., k]``.
        temperature: above 0, no unit.

    Returns:
        float32, ``[..., k + 1]``; ``[..., k]`` where the ids are all words.
    """
    logits = logits.float()
    named = logits.gather(-1, ids)
    if ids.shape[-1] == logits.shape[-1]:
        return named
    return torch.cat([named, rest_of(logits, ids, temperature)[..., None]], dim=-1)


def rest_of(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """``temperature * log(sum of exp(logit / temperature))`` over the words that are not in ``ids``, ``[...]``."""
    others = (logits / temperature).scatter(-1, ids, -torch.inf)
    return temperature * others.logsumexp(dim=-1)
