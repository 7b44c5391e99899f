"""An order drawn by a seed, the same on any machine."""

import hashlib


def rank(seed: int, text: str) -> bytes:
    """A key that shuffles: it depends on nothing but the seed and the text, not on a library's random numbers."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()
