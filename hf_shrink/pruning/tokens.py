"""Which tokens a vocabulary can do without: counted in data, rarest first, never one that other texts or tokens need."""

import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.masks import removed_count
from hf_shrink.pruning.merges import parts_of
from hf_shrink.pruning.serialised import State, fixed_ids, read_state, vocabulary_of

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_TOKEN = -1  # sorts before a token that was never seen


def count_tokens(rows: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """How often each id occurs: int64 ``[vocab_size]``.

    Args:
        rows: token ids, one sequence a row: lists, arrays or tensors of integers.
        vocab_size: of the model.

    Raises:
        MismatchError: an id below 0 or not below ``vocab_size``, with its row.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for index, row in enumerate(rows):
        ids = np.asarray(row, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
            bad = next(int(token) for token in ids.flat if not 0 <= token < vocab_size)
            raise MismatchError(
                f"row {index}: token id {bad} is not in the model's vocabulary of {vocab_size}. "
                "Tokenise with the tokenizer that belongs to the model."
            )
        np.add.at(counts, ids, 1)
    return torch.from_numpy(counts)


def kept_tokens(
    tokenizer: Any,
    counts: Tensor,
    *,
    min_count: int | None = None,
    sparsity: float | None = None,
    round_to: int = 8,
    also: Collection[int] = (),
) -> list[int]:
    """The ids that stay, ascending; exactly one of ``min_count`` and ``sparsity`` says which.

    Always kept: added and special tokens, the unknown token, what frames and pads a text, single characters and bytes (at the
    start and inside of a word), for byte-pair encoding what a kept token is merged from, and for Unigram one token of the
    lowest score, from which the cost of an unknown character is computed. So a text whose tokens all stay is split as before,
    except that WordPiece may find pieces for a word that was unknown as a whole; and a character that has a token keeps it.

    The rarest go first, of equally rare ones the highest id; ids without a token, which pad a model's vocabulary, before all
    others. A few of the last to go stay, so that the number kept is a multiple of ``round_to``.

    Args:
        tokenizer: a fast tokenizer.
        counts: how often each id of the model occurs, int64 ``[vocab_size]``; see ``count_tokens``.
        min_count: keep what occurs at least this often, 1 or more.
        sparsity: fraction of ``vocab_size`` to remove, in [0, 1), before rounding.
        round_to: kernels like a multiple of 8 or 64; with 1 nothing is rounded.
        also: more ids to keep: those that the model's config names, see ``special_ids``.

    Raises:
        RecipeError: not exactly one of the two is given, or it removes nothing or more than may go.
        MismatchError: the tokenizer cannot be cut, has more ids than the model, or lacks one that was counted.
    """
    _check_request(min_count, sparsity, round_to)
    state = read_state(tokenizer)
    size = len(counts)
    named = set(tokenizer.get_vocab().values())
    if outside := {token for token in (*named, *also) if not 0 <= token < size}:
        raise MismatchError(
            f"token id {min(outside)} is outside the model's vocabulary of {size}. Pass the model's own tokenizer."
        )
    counted = [int(count) for count in counts.tolist()]
    if nameless := [token for token, count in enumerate(counted) if count > 0 and token not in named]:
        raise MismatchError(
            f"token id {nameless[0]} was counted {counted[nameless[0]]} times, but {type(tokenizer).__name__} has no such "
            "token. Count with the same tokenizer."
        )
    seen = [count if token in named else _NO_TOKEN for token, count in enumerate(counted)]
    parts = parts_of(state["model"]) if state["model"]["type"] == "BPE" else {}
    order = _removal_order(seen, parts, stay=_always(state) | set(tokenizer.all_special_ids) | set(also))
    if min_count is not None:
        gone = [token for token, _ in takewhile(lambda entry: entry[1] < min_count, order)]
        wanted, request = len(gone), f"min_count {min_count}"
    else:
        gone = [token for token, _ in order]
        wanted, request = removed_count(sparsity or 0.0, size), f"sparsity {sparsity}"
    wanted = max(size + (wanted - size) // round_to * round_to, 0)  # rounds what stays up
    if wanted > len(gone):
        raise RecipeError(
            f"vocabulary: {request} removes {wanted} of {size} tokens, at most {len(gone)} can go: special tokens and single "
            f"characters stay. Use at most sparsity {int(1000 * len(gone) / size) / 1000}."
        )
    if wanted == 0 and sparsity != 0:
        raise RecipeError(
            f"vocabulary: {request} removes 0 of {size} tokens (round_to {round_to}); raise it or leave the entry out."
        )
    return sorted(set(range(size)).difference(gone[:wanted]))


def _check_request(min_count: int | None, sparsity: float | None, round_to: int) -> None:
    if (min_count is None) == (sparsity is None):
        raise RecipeError(f"vocabulary: give min_count or sparsity, and not both; got {min_count} and {sparsity}.")
    if min_count is not None and min_count < 1:
        raise RecipeError(f"vocabulary: min_count must be at least 1, got {min_count}; 1 removes what never occurs.")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise RecipeError(f"vocabulary: sparsity must be in [0, 1), got {sparsity}; 0.8 removes 80 percent.")
    if round_to < 1:
        raise RecipeError(f"vocabulary: round_to must be at least 1, got {round_to}.")


def _removal_order(
    seen: Sequence[int], parts: Mapping[int, Collection[int]], *, stay: Collection[int]
) -> Iterator[tuple[int, int]]:
    """``(id, count)`` as they may go one after the other: a part waits until all that is made from it has gone."""
    needed = Counter(part for each in parts.values() for part in set(each))
    ready = [(count, -token) for token, count in enumerate(seen) if token not in stay and not needed[token]]
    heapq.heapify(ready)
    while ready:
        count, negative = heapq.heappop(ready)
        yield -negative, count
        for part in set(parts.get(-negative, ())):
            needed[part] -= 1
            if not needed[part] and part not in stay:
                heapq.heappush(ready, (seen[part], -part))


def _always(state: State) -> set[int]:
    model, vocabulary = state["model"], vocabulary_of(state)
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = fixed_ids(state)
    for token, index in vocabulary.items():
        inside = token.removeprefix(prefix) if len(token) > len(prefix) else token
        bare = inside.removesuffix(suffix) if len(inside) > len(suffix) else inside
        if 1 in (len(token), len(bare)) or _BYTE.fullmatch(token):
            found.add(index)
    if model["type"] == "Unigram":
        found.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
    return found
