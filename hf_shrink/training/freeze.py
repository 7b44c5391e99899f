"""Which weights stay as they are while the others learn."""

from collections.abc import Sequence

from torch import nn

from hf_shrink.targets import check_patterns, matches


def freeze(model: nn.Module, modules: Sequence[str], where: str) -> list[str]:
    """Stop the named modules from learning.

    Args:
        model: changed in place: ``requires_grad`` of the frozen parameters becomes False.
        modules: ends of module names, such as ``embeddings`` or ``layer.0``.
        where: the recipe's key, for the error.

    Returns:
        Names of the frozen parameters; empty only where ``modules`` is.

    Raises:
        RecipeError: a name matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    check_patterns(names, modules, where)
    chosen = tuple(name for name in names if any(matches(name, pattern) for pattern in modules))
    frozen = [name for name, _ in model.named_parameters() if any(name.startswith(f"{module}.") for module in chosen)]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen
