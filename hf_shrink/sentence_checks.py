"""What a recipe for vectors of texts cannot ask for."""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_shrink.explain import KeyPath
from hf_shrink.tasks import SENTENCES

_GRADIENTS = ("taylor", "snip", "fisher", "movement", "soft_movement")


def sentence_problems(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Vectors of texts are learnt from a teacher alone: whatever needs a loss of their own is refused.

    Args:
        data: a whole recipe as plain data; values of a wrong type are passed over.
    """
    if data.get("task") != SENTENCES:
        return
    section, distillation = _at(data, "data"), _at(data, "distillation")
    if section.get("similarity_column") is not None and section.get("text_pair_column") is None:
        yield ("data", "similarity_column"), "is about pairs of texts; add text_pair_column, or remove it."
    if data.get("distillation") is None:
        yield ("task",), f"{SENTENCES} learns from a teacher alone; add `teacher` and `distillation`."
    weights = {"alpha": distillation.get("alpha", 0.5), "alpha_end": distillation.get("alpha_end", 1.0)}
    for key, weight in weights.items():
        if data.get("distillation") is not None and weight not in (None, 1.0):
            yield ("distillation", key), "there are no labels beside the teacher; write 1.0."
    if _at(data, "teacher").get("training"):
        yield ("teacher", "training"), f"there are no labels to train on; name a trained teacher of {SENTENCES}."
    if _at(data, "training").get("eval_strategy", "no") != "no":
        yield (
            ("training", "eval_strategy"),
            "there is no loss to evaluate: only the teacher says what is right; remove it.",
        )
    entries = data.get("pruning")
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        if not isinstance(entry, Mapping):
            continue
        if entry.get("when") == "before" and entry.get("criterion") in _GRADIENTS:
            yield ("pruning", i, "criterion"), "needs the gradient of a loss on labels, and there are none; use wanda."
        if entry.get("allocation") == "sensitivity":
            yield ("pruning", i, "allocation"), "needs labels to score parts on, and there are none; use uniform or global."


def _at(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section ``key``; an empty one where there is something else or nothing."""
    here = data.get(key)
    return here if isinstance(here, Mapping) else {}
