"""What only shows when the sections of a recipe are seen together. Plain data in, problems out, whatever shape the data has."""

import os.path
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from hf_shrink.attention_checks import attention_problems
from hf_shrink.crossing_checks import crossing_problems
from hf_shrink.explain import KeyPath
from hf_shrink.optimizer_words import optimizer_problems
from hf_shrink.recovery_checks import recovery_problems
from hf_shrink.sentence_checks import sentence_problems
from hf_shrink.tasks import SENTENCES, TASKS
from hf_shrink.training_words import training_problems

Problem: TypeAlias = tuple[KeyPath, str]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_PACKAGE = "package:"
_WHOLE = ("layers", "hidden", "vocabulary")
UNCACHED: Mapping[str, str] = {
    "masked-lm": "masked-lm hides other tokens at each reading of a row, so no answer can be kept",
    "question-answering": "question-answering has two answers a token, and a cache holds one",
    "seq2seq": "what a decoder says follows from its target, too, and a cache knows a row by its text alone",
}
"""Why the answers of a task's teacher cannot be kept."""
_UNSMOOTHED = ("multi-label-classification", "text-regression", "question-answering", SENTENCES, "seq2seq")
_ENTRIES = ("unstructured", "n_of_m", "block")


def recipe_problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything that is wrong between the sections and inside the texts of a recipe; nothing where all is well.

    Args:
        data: a whole recipe as plain data, defaults left out or not. Values of a wrong type are passed over: the sections'
            own checks name those.
    """
    yield from _texts(data, ())
    for path in (("training",), ("teacher", "training"), ("recovery", "training")):
        for word, message in training_problems(_at(data, *path)):
            yield (*path, word), message
        for word, message in optimizer_problems(_at(data, *path)):
            yield (*path, word), message
    yield from _optimization(data)
    yield from _on_policy(data)
    yield from _teacher(data)
    yield from _teachers(data)
    yield from _cache(data)
    yield from crossing_problems(data)
    yield from attention_problems(data)
    yield from _revisions(data)
    yield from _claims(data)
    yield from _backends(data)
    yield from recovery_problems(data)
    yield from _task(data)
    yield from _losses(data)
    yield from _smoothing(data)
    yield from sentence_problems(data)


def _at(data: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The mapping at ``path``; an empty one where there is something else or nothing."""
    here: Any = data
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def _texts(value: Any, path: KeyPath) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _texts(inner, (*path, i))
    elif isinstance(value, str):
        if bad := _CONTROL.search(value):
            yield path, f"holds the character U+{ord(bad[0]):04X}, which no name or path needs; remove it."
        if opening := next((mark for mark in ("${", "{{") if mark in value), None):
            yield path, f"holds {opening!r}, but a recipe has no variables: nothing would be filled in. Write the value out."


def _task(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of ``data`` and ``measurement`` that another task would read, and those that ask for each other."""
    name, section = data.get("task"), _at(data, "data")
    task = TASKS.get(name) if isinstance(name, str) else None
    if task is None:
        return
    for key in sorted(frozenset().union(*(other.data_keys for other in TASKS.values())) - task.data_keys):
        if section.get(key) is not None:
            yield ("data", key), f"would be ignored: {name} does not read it. Remove it."
    if _at(data, "measurement").get("floor") is not None and not task.floor:
        yield ("measurement", "floor"), f"there is none for {name}; remove it."
    for key, what in (("robustness", "disturbs"), ("explain", "explains")):
        if _at(data, "measurement").get(key) not in (None, False) and name != "text-classification":
            yield ("measurement", key), f"{what} the texts of text-classification, not of {name}; remove it."
    if _at(data, "measurement").get("lm_eval") is not None and name != "causal-lm":
        yield ("measurement", "lm_eval"), f"asks causal language models, not those for {name}; remove it."
    entries = data.get("pruning")
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        if isinstance(entry, Mapping) and entry.get("criterion") == "mutual_information" and name != "text-classification":
            yield ("pruning", i, "criterion"), f"mutual_information needs one class a text, which {name} has not; use another."
    chats = section.get("messages_column") is not None
    if section.get("loss_on") == "assistant" and not chats:
        yield ("data", "loss_on"), "would be ignored: plain text has no assistant; add messages_column, or remove it."
    if chats and section.get("text_column", "text") != "text":
        yield ("data", "text_column"), "would be ignored: messages_column is read instead; remove one of them."


def _optimization(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Two that say how the learning rate falls, or who learns when."""
    section, words = _at(data, "optimization"), _at(data, "training")
    if section.get("schedule") is not None:
        for word in ("lr_scheduler_type", "lr_scheduler_kwargs"):
            if words.get(word) is not None:
                yield ("training", word), "would be ignored: optimization.schedule says how the rate falls; remove one of them."
    if section.get("unfreeze_every") is not None and _at(data, "distillation").get("progressive") is not None:
        yield ("optimization", "unfreeze_every"), "distillation.progressive says who learns when; remove one of them."


def _on_policy(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Samples of a student that continues no text, or that nobody is there to judge."""
    if _at(data, "distillation").get("on_policy") is None:
        return
    name = data.get("task")
    if name != "causal-lm" and isinstance(name, str) and name in TASKS:
        yield ("distillation", "on_policy"), f"a model for {name} does not continue texts; remove it, or use task causal-lm."
    if data.get("cache") is not None:
        yield ("cache",), "knows nothing of what the student says in on_policy; remove one of them."


def _teacher(data: Mapping[str, Any]) -> Iterator[Problem]:
    has_teacher, distils = data.get("teacher") is not None, data.get("distillation") is not None
    from_teacher = _at(data, "student").get("start") == "teacher"
    if distils and not has_teacher:
        yield ("distillation",), "there is no teacher to learn from; add `teacher`, or remove `distillation`."
    if from_teacher and not has_teacher:
        yield ("student", "start"), "there is no teacher to start from; add `teacher`, or remove `start`."
    if has_teacher and not distils and not from_teacher:
        yield ("teacher",), "would be ignored; add `distillation`, or `start: teacher` under `student`, or remove `teacher`."
    model, teacher_model = data.get("model"), _at(data, "teacher").get("model")
    if from_teacher and isinstance(model, str) and isinstance(teacher_model, str) and model != teacher_model:
        yield ("model",), f"would be ignored: the student starts from the teacher; write {teacher_model!r} here as well."


def _teachers(data: Mapping[str, Any]) -> Iterator[Problem]:
    """What several teachers cannot do, and what one has no use for."""
    entries, losses = data.get("teacher"), _at(data, "distillation")
    several = isinstance(entries, list | tuple)
    if losses.get("combine") is not None and not (several and len(entries or ()) > 1):
        yield ("distillation", "combine"), "would be ignored: there is one teacher; remove it."
    if not several:
        return
    for i, entry in enumerate(entries or ()):
        for key in ("training", "freeze"):
            if isinstance(entry, Mapping) and entry.get(key):
                yield (
                    ("teacher", i, key),
                    "a list is of trained teachers; train each by a recipe of its own, then name it here.",
                )
    if _at(data, "student").get("start") == "teacher":
        yield ("student", "start"), "of several teachers, none is the one to start from; name it in `model`, or remove `start`."
    yield from _logits_alone(data, "several teachers share")


def _cache(data: Mapping[str, Any]) -> Iterator[Problem]:
    """A cache that nobody reads, that lies where the run writes, or that holds less than a loss needs."""
    section, name = _at(data, "cache"), data.get("task")
    if data.get("cache") is None:
        return
    if data.get("distillation") is None:
        yield ("cache",), "would be ignored: nothing is distilled; add `teacher` and `distillation`, or remove it."
    folder, output = section.get("folder"), data.get("output_dir")
    if isinstance(folder, str) and isinstance(output, str):
        inside, outside = (os.path.normpath(path) + os.sep for path in (folder, output))
        if inside.startswith(outside):
            yield ("cache", "folder"), "lies in output_dir, which belongs to one run; name a folder beside it."
    if why := UNCACHED.get(str(name)):
        yield ("cache",), f"{why}; remove it."
    if not isinstance(data.get("teacher"), list | tuple):
        yield from _logits_alone(data, "a cache holds")
    if name != "causal-lm":
        if section.get("top_k") is not None and isinstance(name, str) and name in TASKS:
            yield ("cache", "top_k"), f"would be ignored: of {name} every output is kept; remove it."
        return
    from hf_shrink.distillation.losses import LOSSES

    able = ", ".join(sorted(loss for loss, entry in LOSSES.items() if entry.merges))
    for i, loss, entry in _named_losses(data):
        where = ("distillation", "losses", i)
        if LOSSES[loss].reads == "logits" and not LOSSES[loss].merges:
            yield (*where, "loss"), f"needs every word, but a cache holds the likeliest. Use {able}."
        elif entry.get("temperature_end") is not None:
            yield (*where, "temperature_end"), "a cache knows the words it leaves out at one temperature alone; remove it."


def _logits_alone(data: Mapping[str, Any], who: str) -> Iterator[Problem]:
    for i, loss, _ in _named_losses(data):
        from hf_shrink.distillation.losses import LOSSES

        if LOSSES[loss].reads != "logits":
            yield (
                ("distillation", "losses", i, "loss"),
                f"reads {LOSSES[loss].reads}, but {who} the logits alone; use forward_kl.",
            )


def _named_losses(data: Mapping[str, Any]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Place, name and entry of each loss whose name is in the table."""
    entries = _at(data, "distillation").get("losses")
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        from hf_shrink.distillation.losses import LOSSES  # here, so that recipes that do not distil leave torch unimported

        loss = entry.get("loss", "forward_kl") if isinstance(entry, Mapping) else None
        if isinstance(loss, str) and loss in LOSSES:
            yield i, loss, entry


def _smoothing(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Label smoothing is for classes: transformers leaves it out for sets of labels and places, and fails on numbers."""
    if data.get("task") in _UNSMOOTHED:
        for path in (("training",), ("teacher", "training"), ("recovery", "training")):
            if _at(data, *path).get("label_smoothing_factor"):
                yield (*path, "label_smoothing_factor"), f"there is none for {data['task']}; remove it."


def _losses(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Losses on logits that are not made for what the task's models put out."""
    name = data.get("task")
    task = TASKS.get(name) if isinstance(name, str) else None
    if task is None:
        return
    for i, loss, _ in _named_losses(data):
        from hf_shrink.distillation.outputs import OUTPUTS, problem_with
        from hf_shrink.distillation.own_losses import as_loss

        if name == "causal-lm" and as_loss(loss).crosses:
            continue
        problem = problem_with(loss, OUTPUTS.get(task.problem_type or name, "classes"), f"{name} gives")
        if problem is not None:
            yield ("distillation", "losses", i, "loss"), problem.replace("\n", " ")


def _revisions(data: Mapping[str, Any]) -> Iterator[Problem]:
    teachers = data.get("teacher")
    sections: list[tuple[KeyPath, Any, str]] = [((), data, "model"), (("data",), data.get("data"), "dataset")]
    several = list(teachers) if isinstance(teachers, list | tuple) else []
    sections += [(("teacher", i), each, "model") for i, each in enumerate(several)] or [(("teacher",), teachers, "model")]
    for path, section, source in sections:
        reference = section.get(source) if isinstance(section, Mapping) else None
        if isinstance(reference, str) and reference.startswith(_PACKAGE):
            for key in ("revision", "subset"):
                if section.get(key) is not None:
                    yield (*path, key), f"would be ignored: {reference!r} is what is installed, not on the Hub. Remove it."


def _backends(data: Mapping[str, Any]) -> Iterator[Problem]:
    entries = data.get("quantization")
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        backend = str(entry.get("backend", "bitsandbytes")) if isinstance(entry, Mapping) else None
        if backend in seen:
            yield ("quantization", i), f"backend {backend!r} has quantization.{seen[backend]} already; remove one."
        elif backend is not None:
            seen[backend] = i


def _claims(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Two entries of ``pruning`` that are sure to want the same weights; patterns that only may overlap are the pruner's."""
    entries = data.get("pruning")
    seen: list[tuple[int, Mapping[str, Any]]] = []
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        if not isinstance(entry, Mapping) or entry.get("exclude_modules"):
            continue
        for j, earlier in seen:
            if _overlap(earlier, entry):
                what = "the same modules as" if entry.get("target_modules") else "modules of"
                yield ("pruning", i), f"claims {what} pruning.{j}; give each its own target_modules, or remove one."
                break
        seen.append((i, entry))


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    one_is, other_is = (str(entry.get("structure", "unstructured")) for entry in (one, other))
    if one_is == other_is and one_is in _WHOLE:
        return True
    if one_is in _WHOLE or other_is in _WHOLE or one.get("when", "during") != other.get("when", "during"):
        return False
    one_takes, other_takes = (_names(entry.get("target_modules")) for entry in (one, other))
    if not one_takes and (one_is == other_is or one_is in _ENTRIES):  # no pattern: all blocks of a kind; entries: everything
        return True
    if not other_takes and (one_is == other_is or other_is in _ENTRIES):
        return True
    return bool(one_takes & other_takes)


def _names(value: Any) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list | tuple) else set()
