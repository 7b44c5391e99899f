"""Quality lost by each mask alone, at some fractions, with the model as it was afterwards."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import FAMILIES, stacks_of
from hf_shrink.pruning.calibrate import calibrate, evaluating
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.layer_sensitivity import hidden_points, layer_points
from hf_shrink.pruning.masks import keep_top, removed_count
from hf_shrink.pruning.patterns import keep_n_of_m
from hf_shrink.pruning.pieces import Group
from hf_shrink.pruning.scores import scores_of, watched_of
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity, Words
from hf_shrink.pruning.statistics import Recorder
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.units import kept_units

Score: TypeAlias = Callable[[PreTrainedModel], float | Mapping[str, float]]
"""Quality, higher = better. Of several the first is what the loss is counted in; the others are kept beside it."""

FRACTIONS = (0.25, 0.5, 0.75)


def sensitivity(
    model: PreTrainedModel,
    configs: PruningConfig | Sequence[PruningConfig],
    score: Score,
    *,
    fractions: Sequence[float] | Mapping[str, Sequence[float]] = FRACTIONS,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    latency: Callable[[PreTrainedModel], float] | None = None,
    entries: Collection[str] | None = None,
    words: Words | None = None,
) -> Sensitivity:
    """Take a fraction of one mask's entries out of ``model`` at a time and score what is left (arXiv:1608.08710, section 3.2).

    The criterion of each entry, on the whole model, says which of them go; the entry's own sparsity is not read. Weights are
    put back to the bit, also where ``score`` raises. An entry for layers takes out one whole layer at a time, one for the
    hidden width cuts copies.

    Args:
        model: a float transformers model.
        configs: entries that do not overlap; one for the vocabulary removes tokens that no text has, and is left out.
        score: sees the model in eval mode, masked by zeros, and must not change it.
        fractions: of one mask, above 0 and below 1; by entry (``pruning.0``) where they differ. Rounded as pruning rounds
            them; what rounds to nothing or to the same number is left out. ``n_of_m`` has one fraction, its pattern's.
        calibration: batches for criteria that need them.
        latency: milliseconds of a model. It sees ``model`` first, then smaller copies of it.
        entries: which entries to measure, as in ``pruning.0``; None takes all.
        words: what the score is.

    Raises:
        RecipeError: targets that cannot be meant, no mask, a criterion without its data, or calibration nobody needs.
        NonFiniteError: a pruning score or a quality is NaN or infinite.
    """
    groups = [group for group in whole_groups(model, as_tuple(configs)) if entries is None or group.entry in entries]
    cuts = {f"pruning.{i}": config for i, config in enumerate(as_tuple(configs)) if entries is None}
    layers, hidden = ({e: c for e, c in cuts.items() if c.structure == kind} for kind in ("layers", "hidden"))
    if not groups and not layers and not hidden:
        raise RecipeError("sensitivity: no entry could be measured; give one with heads, ffn, layers, hidden or unstructured.")
    asked = {entry: _checked(fractions, entry) for entry in (*(group.entry for group in groups), *hidden)}
    with evaluating(model):
        scores = _scores(model, groups, calibration)
        dense, others = _quality(score, model, "the whole model")
        whole = None if latency is None else latency(model)
        points = []
        for group in groups:
            layer, kind = _place(model, group)
            for removed in counts_of(group, asked[group.entry]):
                mask = _mask(group, scores[group.name], removed)
                with without(group, mask):
                    quality, more = _quality(score, model, f"{group.name} without {removed}")
                saved = None
                if latency is not None and whole is not None:  # zeros that stay save no time: measuring them would add noise
                    small = shrink(model, {group.name: mask}) if group.config.makes_smaller else None
                    saved = 0.0 if small is None else whole - latency(small)
                points.append(
                    Point(
                        group=group.name,
                        structure=group.config.structure,
                        kind=kind,
                        layer=layer,
                        fraction=removed / mask.numel(),
                        removed=removed,
                        entries=mask.numel(),
                        quality=quality,
                        loss=dense - quality,
                        parameters=removed * parameters_each(group),
                        macs=removed * macs_each(group),
                        milliseconds=saved,
                        others=more,
                    )
                )
        quality_of = partial(_quality, score)
        if layers:
            points += layer_points(model, quality_of, dense, latency=latency, whole=whole)
        for entry, config in hidden.items():
            points += hidden_points(model, config, asked[entry], quality_of, dense, latency=latency, whole=whole)
    return Sensitivity(tuple(points), dense, words or Words(), others, whole)


def whole_groups(model: Any, configs: Sequence[PruningConfig]) -> tuple[Group, ...]:
    """The masks of ``configs`` whatever their sparsity: refusals of an amount that rounds badly do not matter here."""
    open_ended = {"sparsity": 0.0, "threshold": None}
    return groups_of(model, [c if c.is_cut_at_once or c.pattern else c.model_copy(update=open_ended) for c in configs])


def reads_data(groups: Sequence[Group]) -> bool:
    """Whether a criterion of these masks needs calibration."""
    return _recorder(groups).wants_data


def parameters_each(group: Group) -> int:
    """Parameters that one entry of the mask stands for: all weights and biases of a unit, the weights of a block."""
    if group.weights[0].axis == "entry":
        return math.prod(group.weights[0].block)
    return sum(piece.parameter.numel() for piece in group.pieces) // group.shape.numel()


def macs_each(group: Group) -> int:
    """Multiply-accumulates a token that one entry of the mask stands for: a weight of a projection is one."""
    if group.weights[0].axis == "entry":
        return math.prod(group.weights[0].block)
    return sum(piece.parameter.numel() for piece in group.weights) // group.shape.numel()


@contextmanager
def without(group: Group, mask: Tensor) -> Iterator[None]:
    """What ``mask`` removes is zero inside; afterwards every parameter of ``group`` is what it was, to the bit."""
    before = {piece.name: piece.parameter.detach().clone() for piece in group.pieces}
    try:
        with torch.no_grad():
            for piece in group.pieces:
                piece.parameter.masked_fill_(~piece.spread(mask.to(piece.parameter.device)), 0.0)
        yield
    finally:
        with torch.no_grad():
            for piece in group.pieces:
                piece.parameter.copy_(before[piece.name])


def _recorder(groups: Sequence[Group]) -> Recorder:
    return Recorder([item for group in groups for item in watched_of(group)])


def _scores(
    model: PreTrainedModel, groups: Sequence[Group], calibration: Iterable[Mapping[str, Tensor]] | None
) -> dict[str, Tensor]:
    """What the criteria say of the whole model."""
    recorder = _recorder(groups)
    batches = None if calibration is None else [dict(batch) for batch in calibration]
    if recorder.wants_data != bool(batches):
        names = ", ".join(sorted({str(group.config.criterion) for group in groups}))
        says = "needs batches of data; pass" if recorder.wants_data else "needs none; leave out"
        raise RecipeError(f"sensitivity: criterion {names} {says} calibration.")
    if batches:
        calibrate(model, recorder, batches)
    found = {}
    for group in groups:
        found[group.name] = scores_of(group, {item.name: recorder.stats(item.name) for item in watched_of(group)})
        if bad := int((~found[group.name].isfinite()).sum()):
            raise NonFiniteError(f"{group.name}: {bad} pruning scores are NaN or infinite; repair the weights.")
    return found


def _quality(score: Score, model: PreTrainedModel, what: str) -> tuple[float, dict[str, float]]:
    with torch.no_grad():
        found = score(model)
    first, *others = found.items() if isinstance(found, Mapping) else [("quality", float(found))]
    if not math.isfinite(first[1]):
        raise NonFiniteError(f"sensitivity: the score of {what} is {first[1]}; no loss can be counted from it.")
    return float(first[1]), {name: float(value) for name, value in others}


def _checked(fractions: Sequence[float] | Mapping[str, Sequence[float]], entry: str) -> tuple[float, ...]:
    asked = tuple(fractions.get(entry, ()) if isinstance(fractions, Mapping) else fractions)
    if not asked or not all(0 < fraction < 1 for fraction in asked):
        raise RecipeError(
            f"sensitivity: {entry}: fractions {list(asked)} must be above 0 and below 1, at least one; e.g. 0.25 0.5 0.75."
        )
    return asked


def counts_of(group: Group, fractions: Sequence[float]) -> list[int]:
    """How many entries go, rising; at least one of what stays in multiples stays."""
    entries, config = group.shape.numel(), group.config
    if config.pattern is not None:
        n, m = config.pattern
        return [entries // m * (m - n)]
    if group.weights[0].axis == "entry":
        counts = {min(removed_count(fraction, entries), entries - 1) for fraction in fractions}
    else:
        counts = {entries - kept_units(entries, sparsity=fraction, multiple=group.multiple) for fraction in fractions}
    return sorted(counts - {0})


def _mask(group: Group, scores: Tensor, removed: int) -> Tensor:
    return keep_n_of_m(scores, *group.config.pattern) if group.config.pattern is not None else keep_top(scores, removed)


def _place(model: Any, group: Group) -> tuple[int | None, str]:
    """The layer that the mask is in, and its name with a star for that."""
    family = FAMILIES.get(model.config.model_type)
    lists = [] if family is None else [stack.layers for stack, _ in stacks_of(model, family)]
    ends = "|".join(map(re.escape, lists)) or r"[^.\d]+"
    found = re.search(rf"(?:^|\.)(?:{ends})\.(\d+)(?=[.:])", group.name)
    if found is None:
        return None, group.name
    return int(found[1]), f"{group.name[: found.start(1)]}*{group.name[found.end(1) :]}"
