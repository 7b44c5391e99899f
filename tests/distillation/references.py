"""Every loss written a second time in float64, straight from its formula, and inputs that fit it."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_shrink.distillation.losses import LOSSES

CLASSES = 5
LABELS = torch.tensor([[0, 1, 4, 2], [3, 3, 0, 1], [2, 4, 1, 0]])


def inputs_for(name: str, *, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Float32 ``[3, 4, ...]`` for student and teacher: logits or states, or log-probabilities of two heads over five keys."""
    generator = torch.Generator().manual_seed(seed)
    attends = LOSSES[name].reads in ("attentions", "queries", "keys", "values")
    shape = (3, 4, 2, CLASSES) if attends else (3, 4, CLASSES)
    one, other = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    return (one.log_softmax(-1), other.log_softmax(-1)) if attends else (one, other)


def options_for(name: str, temperature: float = 1.0, labels: Tensor = LABELS) -> dict[str, object]:
    """What the loss takes beside."""
    takes = LOSSES[name].takes
    return ({"temperature": temperature} if "temperature" in takes else {}) | ({"labels": labels} if "labels" in takes else {})


def _p(logits: Tensor, temperature: float) -> Tensor:
    weights = (logits / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def _jsd(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    p, q = _p(t, temperature), _p(s, temperature)
    return temperature**2 * (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2


def _binary(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    p, q = (1 / (1 + (-x / temperature).exp()) for x in (t, s))
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(-1)


def _decoupled(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    found = torch.empty(s.shape[:-1], dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in s.shape[:-1])).tolist():
        right = int(LABELS[tuple(place)])
        p, q = _p(t[tuple(place)], temperature), _p(s[tuple(place)], temperature)
        others = [i for i in range(CLASSES) if i != right]
        two = (torch.stack([x[right], x[others].sum()]) for x in (p, q))
        rest = (x[others] / x[others].sum() for x in (p, q))
        found[tuple(place)] = temperature**2 * (_kl(*two) + 8 * _kl(*rest))
    return found


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def _attention_kl(s: Tensor, t: Tensor, _: float) -> Tensor:
    return (t.exp() * (t - s)).sum(-1).mean(-1)


def _mean_square(s: Tensor, t: Tensor, _: float) -> Tensor:
    return ((s - t) ** 2).sum(-1) / s.shape[-1]


REFERENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda s, t, x: x**2 * _kl(_p(t, x), _p(s, x)),
    "reverse_kl": lambda s, t, x: x**2 * _kl(_p(s, x), _p(t, x)),
    "symmetric_kl": lambda s, t, x: x**2 * ((_p(t, x) - _p(s, x)) * (_p(t, x) / _p(s, x)).log()).sum(-1) / 2,
    "jsd": _jsd,
    "total_variation": lambda s, t, x: x * (_p(s, x) - _p(t, x)).clamp(min=0).sum(-1),
    "soft_cross_entropy": lambda s, t, x: -(x**2) * (_p(t, x) * _p(s, x).log()).sum(-1),
    "decoupled_kd": _decoupled,
    "uld": lambda s, t, x: x * (_p(s, x).sort(-1)[0] - _p(t, x).sort(-1)[0]).abs().sum(-1),
    "logit_mse": _mean_square,
    "binary_kl": _binary,
    "embedding_mse": _mean_square,
    "hidden_mse": _mean_square,
    "hidden_cosine": lambda s, t, _: 1 - (_unit(s) * _unit(t)).sum(-1),
    "sentence_cosine": lambda s, t, _: 1 - (_unit(s) * _unit(t)).sum(-1),
    "pkd": lambda s, t, _: ((_unit(s) - _unit(t)) ** 2).sum(-1),
    "attention_kl": _attention_kl,
    "attention_mse": lambda s, t, _: ((s.exp() - t.exp()) ** 2).sum(-1).mean(-1),
    "query_relation_kl": _attention_kl,
    "key_relation_kl": _attention_kl,
    "value_relation_kl": _attention_kl,
}
