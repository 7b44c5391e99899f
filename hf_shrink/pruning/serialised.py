"""A fast tokenizer as the JSON that it is stored as: which id stands where, and the same JSON with other ids."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerFast

from hf_shrink.errors import MismatchError

State: TypeAlias = dict[str, Any]
"""``tokenizer.json``: the model with its vocabulary, added tokens, post-processor, padding, and parts that hold no ids."""

KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_SMALL = 8
_FRAMES = ("BertProcessing", "RobertaProcessing")


def read_state(tokenizer: Any) -> State:
    """The serialised form of a fast tokenizer.

    Raises:
        MismatchError: a slow tokenizer, one with parts that cannot be stored, or a vocabulary of another kind.
    """
    name = type(tokenizer).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise MismatchError(
            f"{name} is no fast tokenizer, so its vocabulary cannot be cut. Load one that has a tokenizer.json."
        )
    try:
        state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # tokenizers raises a bare Exception for parts written in Python
        raise MismatchError(f"{name} cannot be stored, so its vocabulary cannot be cut: {error}") from None
    if state["model"].get("type") not in KINDS:
        raise MismatchError(f"{name}: vocabulary of kind {state['model'].get('type')!r}. Known: {', '.join(KINDS)}.")
    return state


def vocabulary_of(state: State) -> dict[str, int]:
    """Token -> id of the model's own vocabulary; tokens added outside it are not in it."""
    model = state["model"]
    if model["type"] == "Unigram":
        return {token: index for index, (token, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def fixed_ids(state: State) -> set[int]:
    """Ids that the tokenizer names outside its vocabulary: added tokens, unknown token, framing, padding."""
    model = state["model"]
    found = {token["id"] for token in state["added_tokens"]}
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        if unknown is not None:
            # Classes that build the model again have its number, a small one, in their code: what stands before it stays too.
            found.update(range(unknown + 1) if unknown < _SMALL else (unknown,))
    elif model.get("unk_token") in model["vocab"]:
        found.add(model["vocab"][model["unk_token"]])
    if state["padding"] is not None:
        found.add(state["padding"]["pad_id"])
    for processor in _processors(state["post_processor"]):
        for token in processor.get("special_tokens", {}).values():
            found.update(token["ids"])
        if processor["type"] in _FRAMES:
            found.update((processor["sep"][1], processor["cls"][1]))
    return found


def renumbered(state: State, new_ids: Mapping[int, int]) -> State:
    """``state`` with only the tokens in ``new_ids`` (old id -> new id, in one order), and merges only between those.

    ``new_ids`` holds all of ``fixed_ids(state)``.

    Raises:
        MismatchError: a post-processor that could hold ids in a place not known here.
    """
    new: State = json.loads(json.dumps(state))
    model = new["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [pair for index, pair in enumerate(model["vocab"]) if index in new_ids]
        model["unk_id"] = None if model["unk_id"] is None else new_ids[model["unk_id"]]
    else:
        ordered = sorted(model["vocab"].items(), key=lambda entry: entry[1])
        model["vocab"] = {token: new_ids[index] for token, index in ordered if index in new_ids}
    if model["type"] == "BPE":
        pairs = [merge_pair(merge) for merge in model["merges"]]
        model["merges"] = [list(pair) for pair in pairs if {*pair, merged(pair, model)} <= model["vocab"].keys()]
    for token in new["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if new["padding"] is not None:
        new["padding"]["pad_id"] = new_ids[new["padding"]["pad_id"]]
    for processor in _processors(new["post_processor"]):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [new_ids[index] for index in token["ids"]]
        if processor["type"] in _FRAMES:
            for key in ("sep", "cls"):
                processor[key][1] = new_ids[processor[key][1]]
    return new


def merge_pair(merge: str | list[str]) -> tuple[str, str]:
    """The two halves of a merge, which older files write as one string with a space between them."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def merged(pair: tuple[str, str], model: Mapping[str, Any]) -> str:
    """What a merge makes: the second half loses the mark that says it continues a word."""
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")


def _processors(processor: Any) -> list[dict[str, Any]]:
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [inner for each in processor["processors"] for inner in _processors(each)]
    if processor["type"] not in ("TemplateProcessing", "ByteLevel", *_FRAMES):
        raise MismatchError(f"post-processor {processor['type']!r} may hold token ids in a place that hf_shrink does not know.")
    return [processor]
