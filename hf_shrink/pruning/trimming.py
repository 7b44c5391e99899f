"""A tokenizer with fewer tokens, in memory and in every file that it writes."""

import copy
import json
import tempfile
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hf_shrink.errors import MismatchError
from hf_shrink.pruning.serialised import State, fixed_ids, read_state, renumbered

_FILES = ("vocab_file", "merges_file", "tokenizer_file", "vocab", "merges")


def trim_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy with only the tokens of ``kept``: the new id of a token is its place in ``kept``.

    Everything else stays: class, normalisation, special tokens, chat template, lengths, padding and truncation. What it saves
    loads again with the same ids, which is tried out here, since many classes build their vocabulary anew when they load.

    Args:
        tokenizer: a fast tokenizer; stays as it is.
        kept: old ids, ascending, as ``kept_tokens`` gives them; ids that are no token's, from a padded vocabulary, stay free.

    Raises:
        MismatchError: the tokenizer cannot be cut, ``kept`` lacks a token that it cannot do without, or the result would not
            load again with the same ids.
    """
    state = read_state(tokenizer)
    new_ids = {old: new for new, old in enumerate(kept)}
    if list(new_ids) != sorted(new_ids) or len(new_ids) != len(kept):
        raise MismatchError("kept: the ids must be ascending, each once; pass what kept_tokens gives.")
    lacking = sorted((fixed_ids(state) | set(tokenizer.all_special_ids)).difference(new_ids))
    if lacking:
        raise MismatchError(
            f"kept lacks {tokenizer.convert_ids_to_tokens(lacking[0])!r} (id {lacking[0]}), which {type(tokenizer).__name__} "
            "cannot do without; pass what kept_tokens gives."
        )
    _refuse_stored_ids(tokenizer)
    trimmed = renumbered(state, new_ids)
    small = _copy_around(tokenizer, trimmed)
    expected = {token: new_ids[old] for token, old in tokenizer.get_vocab().items() if old in new_ids}
    _check(small, expected, trimmed["model"].get("unk_id"), "after cutting")
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        again = type(small).from_pretrained(folder)
    _check(again, expected, trimmed["model"].get("unk_id"), "after loading it again")
    return small


def _copy_around(tokenizer: PreTrainedTokenizerFast, state: State) -> PreTrainedTokenizerFast:
    old = tokenizer.backend_tokenizer
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = old.encode_special_tokens  # the one setting that is not in the JSON
    small = copy.deepcopy(tokenizer, {id(old): backend})
    vocab = state["model"]["vocab"]
    plain = [(token, score) for token, score in vocab] if isinstance(vocab, list) else vocab
    merges = [tuple(merge) for merge in state["model"].get("merges", ())]
    for name, value in {"_vocab": plain, "_vocab_scores": plain, "_merges": merges}.items():
        if name in vars(small):  # some classes keep what they were built from
            setattr(small, name, value)
    for name in _FILES:  # the old files would be copied by save_vocabulary
        small.init_kwargs.pop(name, None)
        vars(small).pop(name, None)
    if "added_tokens_decoder" in small.init_kwargs:
        small.init_kwargs["added_tokens_decoder"] = small.added_tokens_decoder
    return small


def _refuse_stored_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    """Tables from tokens to ids that a class keeps for itself, such as those of language codes, would be the old ones."""
    for name, value in vars(tokenizer).items():
        if name != "_vocab" and isinstance(value, dict) and value and all(type(index) is int for index in value.values()):
            raise MismatchError(
                f"{type(tokenizer).__name__}.{name} is a table of token ids, which hf_shrink cannot renumber. "
                "Leave structure: vocabulary out for this model."
            )


def _check(tokenizer: Any, expected: dict[str, int], unknown: int | None, when: str) -> None:
    found = tokenizer.get_vocab()
    if found != expected:
        wrong = min(token for token in {*found, *expected} if found.get(token) != expected.get(token))
        problem = f"{wrong!r} has id {found.get(wrong)} {when}, expected {expected.get(wrong)}"
    elif (stored := read_state(tokenizer)["model"].get("unk_id")) != unknown:
        problem = f"the unknown token has id {stored} {when}, expected {unknown}"
    else:
        return
    raise MismatchError(
        f"{type(tokenizer).__name__}: {problem}. Its class builds the vocabulary in its own way; "
        "leave structure: vocabulary out for this model."
    )
