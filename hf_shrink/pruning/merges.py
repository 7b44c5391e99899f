"""Byte-pair encoding: which tokens a token is made of."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hf_shrink.pruning.serialised import merge_pair, merged


def parts_of(model: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """For each token that merges can make: the ids of the two that its last merge joins.

    In any text that holds a token, the merges inside it are those of the token alone, in the same order: nothing is merged
    across its ends, and of the pairs inside it the one of the lowest rank comes first, the leftmost of equal ones. So one way
    leads to each token, and with its parts, their parts and so on kept, it is still gone when other merges are taken away.

    Args:
        model: the BPE model of a serialised tokenizer.
    """
    vocabulary: Mapping[str, int] = model["vocab"]
    pairs = [merge_pair(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    makes = {merged(pair, model) for pair in pairs}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = {}
    for token in makes & vocabulary.keys():
        symbols = _symbols(token, prefix, suffix)
        while len(symbols) > 2 and (best := _lowest(symbols, ranks)) is not None:
            symbols[best : best + 2] = [merged((symbols[best], symbols[best + 1]), model)]
        if len(symbols) == 2 and (symbols[0], symbols[1]) in ranks:
            found[vocabulary[token]] = (vocabulary[symbols[0]], vocabulary[symbols[1]])
    return found


def _symbols(token: str, prefix: str, suffix: str) -> list[str]:
    """What a word that is this token is split into before any merge."""
    inside, last = bool(prefix) and token.startswith(prefix), bool(suffix) and token.endswith(suffix)
    body = token.removeprefix(prefix).removesuffix(suffix)
    symbols = [(prefix if inside or index else "") + character for index, character in enumerate(body)]
    if last and symbols:
        symbols[-1] += suffix
    return symbols


def _lowest(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> int | None:
    """Where the neighbours stand that are merged next."""
    ranked = [(ranks[pair], index) for index, pair in enumerate(pairwise(symbols)) if pair in ranks]
    return min(ranked)[1] if ranked else None
