"""Entities in tagged sentences, by the rules of the CoNLL evaluation as ``seqeval`` follows them."""

from collections.abc import Iterator, Sequence

Entity = tuple[int, int, str]
"""First word, last word, kind."""

_PREFIXES = frozenset("BIESLU")
_SAME = {"L": "E", "U": "S"}  # BILOU's words for the end of an entity, and for one of a single word


def is_scheme(names: Sequence[str]) -> bool:
    """Whether tags name entities: ``O`` and prefixes, as in ``B-PER``; parts of speech do not."""
    return any(prefix in _PREFIXES and dash for prefix, dash, _ in (name.partition("-") for name in names))


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence.

    One begins at a tag other than ``O`` that says so (``B``, ``S``), that follows ``O`` or an end (``E``, ``S``), or whose
    kind is not that of the tag before; it ends before the next one begins, or before ``O``. So an ``I`` after ``O`` begins
    an entity as well.

    Args:
        tags: ``O``, or a prefix of IOB, IOBES or BILOU with a kind: ``B-PER``. A tag without a prefix is ``I`` of its own kind.
    """
    return set(_found(tags))


def _found(tags: Sequence[str]) -> Iterator[Entity]:
    start, before, kind = 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, own = _split(tag)
        begins = prefix != "O" and (prefix in "BS" or before in "OES" or own != kind)
        if before != "O" and (begins or prefix == "O"):
            yield start, i - 1, kind
        if begins:
            start = i
        before, kind = prefix, own


def _split(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    if dash and prefix in _PREFIXES:
        return _SAME.get(prefix, prefix), kind
    return "I", tag
