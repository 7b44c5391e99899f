"""What a recipe cannot ask for where student and teacher have two tokenizers."""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_shrink.explain import KeyPath


def crossing_problems(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What does not go with a loss across tokenizers; nothing where there is none.

    Args:
        data: a whole recipe as plain data. Values of a wrong type are passed over.
    """
    losses = _at(data, "distillation").get("losses")
    named = [entry.get("loss") for entry in losses if isinstance(entry, Mapping)] if isinstance(losses, list | tuple) else []
    if "uld" not in named or data.get("task") != "causal-lm":
        return
    rows = _at(data, "data")
    if rows.get("packing", True) is not False:
        yield (
            ("data", "packing"),
            "joined texts are cut at other places in the teacher's tokens, which uld reads; write false.",
        )
    if rows.get("messages_column") is not None and rows.get("loss_on") != "assistant":
        yield ("data", "loss_on"), "uld compares what the assistant says, turn by turn: chat templates differ; write assistant."
    if isinstance(data.get("teacher"), list | tuple):
        yield ("teacher",), "uld has one teacher, whose tokens stand beside the student's; name one."
    elif _at(data, "teacher").get("training") is not None:
        yield (
            ("teacher", "training"),
            "its tokens are not the student's under uld; train it by a recipe of its own, then name it.",
        )
    if data.get("cache") is not None:
        yield ("cache",), "uld reads a live teacher, which has tokens of its own; remove it."
    if data.get("gate") is not None:
        yield ("gate",), "numbers of a teacher with another tokenizer are about other tokens and cannot be kept; remove it."


def _at(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    here = data.get(key)
    return here if isinstance(here, Mapping) else {}
