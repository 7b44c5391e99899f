"""What a model says of labelled data, whatever its task: the one thing that scores are made of."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from hf_shrink.errors import MismatchError


class Answers(Protocol):
    """The answers to samples in their order; resampling draws samples."""

    @property
    def samples(self) -> str:
        """Count and a digest of what was to be said: equal only for the same test set."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Sampled:
    """Predicted and true values of the same samples in the same order, arrays of one shape with samples first."""

    predicted: npt.NDArray[Any]
    labels: npt.NDArray[Any]

    ndim: ClassVar[int] = 1
    each: ClassVar[str] = "one number a sample"

    def __post_init__(self) -> None:
        if self.predicted.shape != self.labels.shape or self.labels.ndim != self.ndim:
            raise MismatchError(f"answers {self.predicted.shape} do not fit labels {self.labels.shape}; {self.each}.")
        if len(self.labels) == 0:
            raise MismatchError("answers: no samples to judge; the evaluation data is empty.")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def samples(self) -> str:
        """Count and a digest of the labels."""
        return f"{len(self.labels)} examples, labels {sha256(self.labels.tobytes()).hexdigest()[:8]}"
