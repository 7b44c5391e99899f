"""What of ``recovery`` only shows when the other sections of a recipe are seen. Plain data in, problems out."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from hf_shrink.explain import KeyPath
from hf_shrink.tasks import TASKS

Problem: TypeAlias = tuple[KeyPath, str]

TASKS_OF = (
    "text-classification",
    "multi-label-classification",
    "text-regression",
    "token-classification",
    "causal-lm",
)
"""Tasks whose models read a batch without its labels, and that one head answers."""


def recovery_problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Something to give back, and losses that compare what the float student and the quantised one say."""
    section, stores = data.get("recovery"), data.get("quantization")
    if not isinstance(section, Mapping):
        return
    name = data.get("task")
    if isinstance(name, str) and name in TASKS and name not in TASKS_OF:
        yield ("recovery",), f"is for {', '.join(TASKS_OF)}, not for {name}; remove it."
    entries = [entry for entry in (stores if isinstance(stores, list | tuple) else [stores]) if isinstance(entry, Mapping)]
    stored = next((entry for entry in entries if entry.get("backend", "bitsandbytes") == "bitsandbytes"), None)
    if not entries:
        yield ("recovery",), "would be ignored: nothing is quantised; add `quantization`, or remove it."
    elif stored is None:
        if section.get("method", "adapters") == "adapters":
            yield ("recovery",), "a graph takes no adapters; use method: qat, add an entry of bitsandbytes, or remove it."
    elif stored.get("bits") == 16:
        yield ("recovery",), "would be ignored: bits: 16 quantises nothing; use bits 8, 4 or auto, or remove it."
    given = section.get("distillation")
    words = given if isinstance(given, Mapping) else {}
    if words.get("on_policy") is not None:
        yield ("recovery", "distillation", "on_policy"), "recovery learns from the texts alone; remove it."
    if words.get("combine") is not None:
        yield ("recovery", "distillation", "combine"), "would be ignored: there is one teacher, the float student; remove it."
    if section.get("training") is not None:
        yield from _recovery_losses(str(data.get("task")), words)


def _recovery_losses(name: str, words: Mapping[str, Any]) -> Iterator[Problem]:
    from hf_shrink.distillation.losses import LOSSES
    from hf_shrink.distillation.outputs import OUTPUTS, problem_with

    task, where = TASKS.get(name), ("recovery", "distillation", "losses")
    entries = words.get("losses", [{}])
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        loss = entry.get("loss", "forward_kl") if isinstance(entry, Mapping) else None
        if not isinstance(loss, str) or loss not in LOSSES:
            continue
        problem = None if task is None else problem_with(loss, OUTPUTS.get(task.problem_type, "classes"), f"{name} gives")
        if LOSSES[loss].reads != "logits":
            yield (*where, i, "loss"), f"reads {LOSSES[loss].reads}, but what came back shows in the logits; use forward_kl."
        elif problem is not None:
            yield (*where, i, "loss") if words else ("recovery", "training"), problem.replace("\n", " ")
