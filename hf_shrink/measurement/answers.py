"""What a model says of labelled data, whatever its task: the one thing that scores are made of."""

from typing import Protocol


class Answers(Protocol):
    """The answers to samples in their order; resampling draws samples."""

    @property
    def samples(self) -> str:
        """Count and a digest of what was to be said: equal only for the same test set."""

    def __len__(self) -> int: ...
