"""Whether what is to learn, and when, can work: told before a training begins."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import Trainer

from hf_shrink.distillation.stages import Stage
from hf_shrink.errors import RecipeError
from hf_shrink.learning import check_learns
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import as_criterion
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.sums import FROM_GRADIENTS, FROM_PRODUCTS
from hf_shrink.training.config import OptimizationConfig
from hf_shrink.training.depths import depths_of
from hf_shrink.training.schedules import check_falls


def check_optimization(
    config: OptimizationConfig, stages: Sequence[Stage], student: Any, pruning: Sequence[PruningConfig], steps: int
) -> None:
    """Refuse what would have no effect, or another one than it says.

    Args:
        config: of the training.
        stages: of a progressive distillation; none without it.
        student: as it begins, with what is frozen for good; shapes are enough.
        pruning: entries that follow the training.
        steps: its optimizer steps.

    Raises:
        RecipeError: the key and what to change.
    """
    check_learns(student, "training")
    if config.schedule is not None:
        check_falls(config.schedule, steps)
    if config.penalty is not None and not penalised(student):
        raise RecipeError(
            "optimization.penalty: would be ignored, only biases and norms are left to learn, which it does not count.\n"
            "Remove it, or freeze less."
        )
    if config.layer_decay is not None:
        depths_of(student, "optimization.layer_decay")
    if config.unfreeze_every is not None:
        if stages:
            raise RecipeError("optimization.unfreeze_every: distillation.progressive says who learns when; remove one of them.")
        _check_unfreezing(config.unfreeze_every, student, pruning, steps)
    if stages:
        _check_stages(stages, student, pruning, steps)


def penalised(student: Any) -> list[Any]:
    """The weights that a penalty counts: those that learn and decay, biases and norms left out."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), student))
    return [parameter for name, parameter in student.named_parameters() if name in decayed and parameter.requires_grad]


def _check_unfreezing(every: int, student: Any, pruning: Sequence[PruningConfig], steps: int) -> None:
    where = "optimization.unfreeze_every"
    depths = depths_of(student, where)
    top = max(depths.values())
    learning = {depths[name] for name, parameter in student.named_parameters() if parameter.requires_grad}
    if top not in learning:
        raise RecipeError(f"{where}: nothing above the layers can learn, so the first steps would change nothing; remove it.")
    last = (top - min(learning)) * every
    if last >= steps:
        raise RecipeError(
            f"{where}: the lowest weights would learn from step {last} on, but the training ends after {steps}.\n"
            f"Write at most {max((steps - 1) // max(top - min(learning), 1), 1)}, or freeze what is not to learn."
        )
    _refuse_gradients(pruning, where)


def _check_stages(stages: Sequence[Stage], student: Any, pruning: Sequence[PruningConfig], steps: int) -> None:
    where = "distillation.progressive"
    if stages[-1].end >= steps:
        raise RecipeError(
            f"{where}: its {len(stages)} stages take {stages[-1].end} steps, but the training ends after {steps}.\n"
            "The whole student would never learn: lower steps_per_layer, or train longer."
        )
    depths = depths_of(student, where)
    learning = {depths[name] for name, parameter in student.named_parameters() if parameter.requires_grad}
    for number, stage in enumerate(stages):
        if not learning & set(stage.depths):
            raise RecipeError(f"{where}: in stage {number} nothing can learn, its layers are frozen; compare other layers.")
    _refuse_gradients(pruning, where)


def _refuse_gradients(pruning: Sequence[PruningConfig], where: str) -> None:
    """A RecipeError where a criterion reads gradients, which layers that rest do not have."""
    for place, entry in named(pruning):
        if not entry.follows_training:
            continue
        chosen = as_criterion(entry.criterion)
        if {*chosen.needs, *chosen.unit_needs} & (FROM_GRADIENTS | FROM_PRODUCTS):
            raise RecipeError(
                f"{place}.criterion: reads gradients, which layers at rest under {where} do not have.\nUse magnitude, or wanda."
            )
