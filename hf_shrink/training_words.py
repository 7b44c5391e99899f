"""The words that a ``training`` section may use: those of TrainingArguments, less what the recipe itself decides.

The words and their types are read from transformers' source text: importing the class would import torch, and a recipe is
checked before anything as slow as that.
"""

import ast
import importlib.util
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hf_shrink.errors import ResourceError
from hf_shrink.tables import nearest

_RESUMES = "a run resumes by itself from output_dir"
_PUBLISHES = "training uploads nothing; publish the finished folder instead"
_SHARDS = "it spreads one weight over several processes, where masks cannot be told apart; use plain data parallelism"
_REFUSED = {
    "output_dir": "the recipe's own output_dir says where",
    "overwrite_output_dir": "pass --overwrite to the run",
    "seed": "the recipe's own seed is used",
    "remove_unused_columns": "the splits have the model's columns only",
    "resume_from_checkpoint": _RESUMES,
    "ignore_data_skip": _RESUMES,
    "restore_callback_states_from_checkpoint": _RESUMES,
    "trackio_space_id": _PUBLISHES,
    "trackio_bucket_id": _PUBLISHES,
    "trackio_static_space_id": _PUBLISHES,
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "deepspeed": _SHARDS,
    "parallelism_config": _SHARDS,
}
_REFUSED_STARTS = {
    "push_to_hub": _PUBLISHES,
    "hub_": _PUBLISHES,
    "do_": "the recipe's sections say what is done",
}
_NO_TRACKERS = {
    "all": "it names none, and what is installed here would be told; name the trackers",
    "codecarbon": "its file would go with the checkpoints; measurement.energy measures energy and CO2",
}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "list": (list, tuple),
}


def training_problems(words: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a ``training`` section, as (word, message); nothing where all is well."""
    known = training_words()
    usable = [word for word in known if _refusal(word) is None]
    for word, value in words.items():
        if (reason := _refusal(word)) is not None:
            yield word, f"not set here: {reason}. Remove it."
        elif word not in known:
            yield (
                word,
                f"unknown key {word[:60]!r}.{nearest(word, usable)} Known: the names of transformers' TrainingArguments.",
            )
        elif isinstance(value, float) and not math.isfinite(value):
            yield word, f"must be finite, got {value}."
        elif not _fits(known[word], value):
            yield word, f"expected {ast.unparse(known[word])}, got {_kind(value)} {repr(value)[:60]}."
        elif word == "report_to":
            yield from ((word, f"{name} is refused: {_NO_TRACKERS[name]}.") for name in trackers(words) if name in _NO_TRACKERS)


def trackers(words: Mapping[str, Any]) -> tuple[str, ...]:
    """Whom ``report_to`` of a ``training`` section names, each once; nobody without it."""
    named = words.get("report_to") or ()
    every = (named,) if isinstance(named, str) else tuple(str(name) for name in named)
    return () if every == ("none",) else tuple(dict.fromkeys(every))


@cache
def training_words() -> dict[str, ast.expr]:
    """Each field of TrainingArguments with its annotation, in the order of the source.

    Raises:
        ResourceError: transformers is not installed.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ResourceError("transformers is not installed: pip install transformers")
    source = Path(found.origin).with_name("training_args.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    fields = (node for node in classes["TrainingArguments"].body if isinstance(node, ast.AnnAssign))
    return {field.target.id: field.annotation for field in fields if isinstance(field.target, ast.Name)}


def _refusal(word: str) -> str | None:
    return _REFUSED.get(word) or next((why for start, why in _REFUSED_STARTS.items() if word.startswith(start)), None)


def _fits(annotation: ast.expr, value: Any) -> bool:
    """True where plain data ``value`` can be meant; an annotation that is not understood takes everything."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(left, value) or _fits(right, value)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name):
            right_kind = isinstance(value, _KINDS.get(name, ()))  # a class of transformers' own cannot be written in YAML
            return right_kind and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id=("list" | "dict") as name)):
            return isinstance(value, _KINDS[name])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=literal)):
            return value is literal
    return True


def _kind(value: Any) -> str:
    names = {str: "string", bool: "boolean", dict: "mapping", type(None): "null"}
    return names.get(type(value), type(value).__name__)
