"""Progressive distillation: which layers are compared, and which learn, at which step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_shrink.distillation.config import LossTerm, ProgressiveConfig
from hf_shrink.distillation.layer_maps import Pair
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.errors import RecipeError


@dataclass(frozen=True)
class Stage:
    """Some steps in which a part of the student learns from the losses on layers alone.

    Attributes:
        begin, end: optimizer steps; ``end`` belongs to what follows.
        depths: who learns: 0 is what stands before the layers, n + 1 is layer n.
        pairs: by the name of a term, the layers it compares; a term that is not here counts nothing.
    """

    begin: int
    end: int
    depths: range
    pairs: Mapping[str, tuple[Pair, ...]]


def stages_of(
    config: ProgressiveConfig, terms: Mapping[str, LossTerm], pairs: Mapping[str, tuple[Pair, ...]]
) -> tuple[Stage, ...]:
    """One stage for each layer of the student that some term compares, from the bottom (arXiv:2004.02984).

    ``bottom_up``: layers up to the stage's learn, from all terms so far. ``layer_by_layer``: its layer alone, and those
    between it and the last one, from its terms. Embeddings belong to the first stage.

    Raises:
        RecipeError: ``steps_per_layer`` lists other stages than there are.
    """
    where = {name: [_depth(terms[name], pair) for pair in compared] for name, compared in pairs.items()}
    tops = sorted({depth for depths in where.values() for depth in depths} - {0})
    steps = config.steps_per_layer if isinstance(config.steps_per_layer, tuple) else (config.steps_per_layer,) * len(tops)
    if len(steps) != len(tops):
        layers = ", ".join(str(top - 1) for top in tops)
        raise RecipeError(
            f"distillation.progressive.steps_per_layer: {len(steps)} numbers for {len(tops)} stages.\n"
            f"Give one for each layer of the student that is compared: {layers}."
        )
    found, begin = [], 0
    for (below, top), length in zip(pairwise([-1, *tops]), steps, strict=True):
        low = 0 if config.order == "bottom_up" else below + 1
        now = {
            name: tuple(pair for pair, depth in zip(compared, where[name], strict=True) if low <= depth <= top)
            for name, compared in pairs.items()
        }
        found.append(Stage(begin, begin + length, range(low, top + 1), {name: some for name, some in now.items() if some}))
        begin += length
    return tuple(found)


def stage_at(stages: Sequence[Stage], step: int) -> Stage | None:
    """The stage after ``step`` optimizer steps; None where the whole student learns from everything."""
    return next((stage for stage in stages if stage.begin <= step < stage.end), None)


def named(terms: Sequence[LossTerm]) -> dict[str, LossTerm]:
    """Terms by the name they are logged under: a loss used twice is ``forward_kl`` and ``forward_kl_2``, ``task`` is taken."""
    found: dict[str, LossTerm] = {}
    for term in terms:
        again = (term.name == "task") + sum(other.name == term.name for other in found.values())
        found[f"{term.name}_{again + 1}" if again else term.name] = term
    return found


def _depth(term: LossTerm, pair: Pair) -> int:
    return 0 if as_loss(term.loss).reads == "embeddings" else pair[0] + 1
