"""Texts as people really write them: small changes, drawn from a seed and the text alone, whatever row it stands in."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORDS = re.compile(r"\S+")

Change = Callable[[list[str], int, random.Random], list[str]]
"""Words, how many of them to change, and where to draw from; the words after it."""


def disturbed(text: str, kind: str, rate: float, seed: int) -> str:
    """``text`` with a part of its words changed; the spaces between words stay unless a word goes.

    Args:
        text: any text; one that cannot be changed in this way comes back as it is.
        kind: a name of ``KINDS``.
        rate: fraction of the words, above 0 and at most 1; rounded, and one word at least.
        seed: with ``text`` and ``kind`` all that the result depends on.
    """
    words = _WORDS.findall(text)
    if not words:
        return text
    count = min(len(words), max(1, round(rate * len(words))))
    changed = KINDS[kind](list(words), count, _source(seed, kind, text))
    if len(changed) != len(words):
        return " ".join(changed)
    gaps = _WORDS.split(text)
    return gaps[0] + "".join(word + gap for word, gap in zip(changed, gaps[1:], strict=True))


def some_rows(texts: Sequence[str], count: int, seed: int) -> list[int]:
    """At most ``count`` row numbers, ascending: the same texts whatever order they come in."""
    ranked = sorted(range(len(texts)), key=lambda i: (_digest(seed, "rows", texts[i]), texts[i]))
    return sorted(ranked[:count])


def neighbours(letter: str) -> str:
    """The keys beside and above or below a letter on a QWERTY keyboard; empty for what is not on it."""
    for row, keys in enumerate(_ROWS):
        if (column := keys.find(letter.lower())) >= 0 and letter:
            beside = keys[max(0, column - 1) : column] + keys[column + 1 : column + 2]
            others = [_ROWS[i] for i in (row - 1, row + 1) if 0 <= i < len(_ROWS)]
            return beside + "".join(other[column : column + 1] for other in others)
    return ""


def _typos(words: list[str], count: int, source: random.Random) -> list[str]:
    """In each word one letter becomes, or is followed by, a neighbouring key, changes places with the next, or goes."""
    for i in _drawn([i for i, word in enumerate(words) if any(map(neighbours, word))], count, source):
        words[i] = _typo(words[i], source)
    return words


def _typo(word: str, source: random.Random) -> str:
    at = source.choice([i for i, letter in enumerate(word) if neighbours(letter)])
    near = source.choice(neighbours(word[at]))
    near = near.upper() if word[at].isupper() else near
    swapped = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
    ways = [word[:at] + near + word[at + 1 :], word[: at + 1] + near + word[at + 1 :]]
    ways += [swapped] if swapped != word else []
    ways += [word[:at] + word[at + 1 :]] if len(word) > 1 else []
    return source.choice(ways)


def _casing(words: list[str], count: int, source: random.Random) -> list[str]:
    for i in _drawn([i for i, word in enumerate(words) if word.swapcase() != word], count, source):
        words[i] = words[i].swapcase()
    return words


def _dropped_words(words: list[str], count: int, source: random.Random) -> list[str]:
    gone = set(_drawn(range(len(words)), min(count, len(words) - 1), source))  # a text without a word is none
    return [word for i, word in enumerate(words) if i not in gone]


def _swapped_words(words: list[str], count: int, source: random.Random) -> list[str]:
    """Pairs of neighbours that share no word change places; ``count`` words or one more take part where there are enough."""
    free = set(range(len(words)))
    left = max(1, count // 2)
    for i in _drawn(range(len(words) - 1), len(words) - 1, source):
        if left and {i, i + 1} <= free and words[i] != words[i + 1]:
            words[i], words[i + 1] = words[i + 1], words[i]
            free -= {i, i + 1}
            left -= 1
    return words


def _drawn(choices: Sequence[int], count: int, source: random.Random) -> list[int]:
    return source.sample(list(choices), min(count, len(choices)))


def _source(seed: int, kind: str, text: str) -> random.Random:
    return random.Random(int.from_bytes(_digest(seed, kind, text)))


def _digest(seed: int, kind: str, text: str) -> bytes:
    return sha256(f"{seed}\0{kind}\0{text}".encode(errors="surrogatepass")).digest()


KINDS: Mapping[str, Change] = {
    "typos": _typos,
    "casing": _casing,
    "dropped_words": _dropped_words,
    "swapped_words": _swapped_words,
}
