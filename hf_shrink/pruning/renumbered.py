"""Names with a layer's number in them, where layers leave and the others are numbered again."""

from collections.abc import Sequence
from typing import Any

from hf_shrink.errors import RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.entries import named
from hf_shrink.targets import matches


def refuse_numbers(model: Any, configs: Sequence[PruningConfig]) -> None:
    """A RecipeError where a pattern means some layers by number, and an entry drops layers: nobody could say which it means.

    Args:
        model: as it is before any layer leaves; on meta is enough.
        configs: all entries.
    """
    dropping = next((place for place, entry in named(configs) if entry.structure == "layers"), None)
    if dropping is None:
        return
    names = {id(module): name for name, module in model.named_modules()}
    stacks = [[(names[id(layer)], layer) for layer in layers] for _, layers in stacks_of(model, family_of(model, dropping))]
    for place, entry in named(configs):
        for field in ("target_modules", "exclude_modules"):
            for pattern in getattr(entry, field):
                if any(_tells_apart(pattern, layers) for layers in stacks):
                    raise RecipeError(
                        f"{place}.{field}: {pattern!r} names layers by number, but {dropping} drops some, and the others are "
                        "numbered again.\nWrite it without the number, or drop layers first, in a call or a recipe of its own."
                    )


def _tells_apart(pattern: str, layers: Sequence[tuple[str, Any]]) -> bool:
    """Whether ``pattern`` names a module in some of ``layers`` and not its namesakes in the others."""
    found: dict[str, set[bool]] = {}
    for name, layer in layers:
        for path, _ in layer.named_modules():
            found.setdefault(path, set()).add(matches(f"{name}.{path}" if path else name, pattern))
    return any(len(hits) > 1 for hits in found.values())
