"""Whether anything of a model would learn."""

from torch import nn

from hf_shrink.errors import RecipeError


def check_learns(model: nn.Module, what: str) -> None:
    """Raise RecipeError where no weight asks for a gradient; ``what`` names who needs one."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(
            f"{what}: none of the model's weights asks for a gradient. A model that has taught stays frozen, so does what is "
            "copied or pruned from it; `optimization.freeze` may name everything, too.\n"
            "Call model.requires_grad_(True) first, give the teacher as a copy of its own, or freeze less."
        )
