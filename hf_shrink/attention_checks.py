"""What a recipe cannot ask for where a loss reads attention."""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_shrink.explain import KeyPath

_SECTIONS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")


def attention_problems(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Checkpoints without a gradient under losses on attention; nothing where there is none of both.

    Args:
        data: a whole recipe as plain data. Values of a wrong type are passed over.
    """
    words, losses = _mapping(data.get("training")), _mapping(data.get("distillation")).get("losses")
    asked = [name for name in _SECTIONS if _mapping(words.get(name)).get("use_reentrant") is True]
    if not asked or not (words.get("activation_checkpointing") or words.get("gradient_checkpointing")):
        return
    from hf_shrink.distillation.losses import ATTENTION_READS, LOSSES  # here: recipes that do not distil leave torch unimported

    for entry in losses if isinstance(losses, list | tuple) else ():
        loss = _mapping(entry).get("loss")
        if isinstance(loss, str) and loss in LOSSES and LOSSES[loss].reads in ATTENTION_READS:
            yield (
                ("training", asked[0]),
                f"{loss} would teach nothing: the student's layers run without a gradient; write use_reentrant: false.",
            )
            return


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
