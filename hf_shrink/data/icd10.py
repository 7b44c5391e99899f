"""Texts from the package ``simple_icd_10_cm``: which of 21 ICD-10-CM chapters does a diagnosis belong to?

The classification is published by the US National Center for Health Statistics; a code is a chapter's letter range, a category
of three characters, and up to four more. Leaves of one category differ in a word or two, so a category is never in two splits.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from datasets import ClassLabel, Dataset, Features, Value

from hf_shrink.data.drawing import rank
from hf_shrink.errors import ResourceError

SHARES: Mapping[str, int] = {"train": 25, "validation": 3, "test": 8}
SIZES: Mapping[str, int] = {"train": 5000, "validation": 600, "test": 1600}
MIN_LEAVES = 100  # leaves out chapter 22, codes for special purposes, which has three

Leaves = dict[str, dict[str, list[str]]]
"""Chapter -> category -> descriptions, each description once."""


def icd10_chapters(seed: int, sizes: Mapping[str, int | None]) -> dict[str, Dataset]:
    """``text`` and ``label`` (a chapter's name) in splits train, validation and test.

    Args:
        seed: decides which categories are in which split, whatever the sizes are, and which rows are drawn.
        sizes: rows of each split, balanced over the chapters as far as they go; None takes about 5,000 / 600 / 1,600.

    Returns:
        The same rows in the same order for the same seed, sizes and package version, on any machine.

    Raises:
        ResourceError: the package is not installed.
    """
    names, leaves = _read()
    sides = {chapter: _divide(categories, seed) for chapter, categories in leaves.items()}
    features = Features({"text": Value("string"), "label": ClassLabel(names=[names[chapter] for chapter in leaves])})
    splits = {}
    for split in SHARES:
        rows = [
            (text, label)
            for label, texts in enumerate(
                _balanced([side[split] for side in sides.values()], sizes.get(split) or SIZES[split], seed)
            )
            for text in texts
        ]
        rows.sort(key=lambda row: rank(seed, row[0]))
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        splits[split] = Dataset.from_dict(columns, features=features)
    return splits


def _read() -> tuple[dict[str, str], Leaves]:
    """Names of the chapters, and their leaves, both in the order of the classification."""
    try:
        import simple_icd_10_cm as icd  # takes seconds: it reads the whole classification
    except ImportError:
        raise ResourceError("package:simple_icd_10_cm: not installed; pip install 'hf_shrink[demo]'") from None
    codes = icd.get_all_codes()
    names = {code: re.sub(r"\s*\([^()]*\)$", "", icd.get_description(code)) for code in codes if icd.is_chapter(code)}
    leaves: Leaves = {chapter: defaultdict(list) for chapter in names}
    seen: set[str] = set()
    for code in codes:
        if not icd.is_leaf(code):
            continue
        text = " ".join(icd.get_description(code).split())
        if text.casefold() not in seen:  # a text that two categories share stays with the first, or it could be in two splits
            seen.add(text.casefold())
            leaves[icd.get_ancestors(code)[-1]][code[:3]].append(text)
    return names, {c: dict(found) for c, found in leaves.items() if sum(map(len, found.values())) >= MIN_LEAVES}


def _divide(categories: Mapping[str, list[str]], seed: int) -> dict[str, list[list[str]]]:
    """Whole categories for each split: in a drawn order, each goes where rows are furthest below their share."""
    sides: dict[str, list[list[str]]] = {split: [] for split in SHARES}
    filled = dict.fromkeys(SHARES, 0)
    for category in sorted(categories, key=lambda name: rank(seed, name)):
        split = min(SHARES, key=lambda name: filled[name] / SHARES[name])
        sides[split].append(categories[category])
        filled[split] += len(categories[category])
    return sides


def _balanced(classes: list[list[list[str]]], total: int, seed: int) -> Iterable[list[str]]:
    """``total`` texts, the same number from each class while it lasts, and within a class whichever were drawn."""
    ordered = [
        sorted((text for texts in categories for text in texts), key=lambda text: rank(seed, text)) for categories in classes
    ]
    quotas = [0] * len(ordered)
    while sum(quotas) < total and (open_classes := [i for i, texts in enumerate(ordered) if quotas[i] < len(texts)]):
        each = max((total - sum(quotas)) // len(open_classes), 1)
        for i in open_classes:
            quotas[i] += min(each, len(ordered[i]) - quotas[i], total - sum(quotas))
    return [texts[:quota] for texts, quota in zip(ordered, quotas, strict=True)]
