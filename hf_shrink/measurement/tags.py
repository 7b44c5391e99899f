"""What a model says of the words of sentences: one tag each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.entities import entities, is_scheme
from hf_shrink.measurement.predict import predict_words


@dataclass(frozen=True)
class Tags:
    """Predicted and true tags of the same words in the same order.

    Attributes:
        predicted, labels: int64 ``[words]``, sentence after sentence.
        words: of each sentence, int64 ``[sentences]``.
        names: of the tags.
        logits: those behind the answers, float32 ``[words, tags]``; None where only the answers are known.
    """

    predicted: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    names: tuple[str, ...]
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.predicted.shape != self.labels.shape or int(self.words.sum()) != len(self.labels):
            raise MismatchError(
                f"answers: {len(self.predicted)} tags do not fit {len(self.labels)} labels of {int(self.words.sum())} words."
            )
        if len(self.labels) == 0:
            raise MismatchError("answers: no words to judge; the evaluation data is empty.")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def samples(self) -> str:
        """Sentences, words and a digest of their tags."""
        digest = sha256(self.words.tobytes() + self.labels.tobytes()).hexdigest()[:8]
        return f"{len(self.words)} sentences, {len(self.labels)} words, labels {digest}"

    def per_sample(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value a word, summed over each sentence."""
        ends = np.concatenate([[0], np.cumsum(self.words)])
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return np.asarray(sums[ends[1:]] - sums[ends[:-1]])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """How many answers each sample has: one a word."""
        return self.words

    @cached_property
    def hits(self) -> npt.NDArray[np.float64]:
        """Right tags in each sentence."""
        return np.asarray(self.per_sample(self.predicted == self.labels))

    def sentences(self, indices: npt.NDArray[np.int64]) -> list[list[str]]:
        """The names of tags, sentence by sentence."""
        parts = np.split(indices, np.cumsum(self.words)[:-1])
        return [[self.names[i] for i in part] for part in parts]


@dataclass(frozen=True)
class EntityTags(Tags):
    """Tags that name entities."""

    @cached_property
    def counts(self) -> npt.NDArray[np.float64]:
        """Of each sentence: entities that are right, said, and there; ``[sentences, 3]``."""
        pairs = zip(self.sentences(self.predicted), self.sentences(self.labels), strict=True)
        found = [(entities(said), entities(true)) for said, true in pairs]
        return np.array([[len(said & true), len(said), len(true)] for said, true in found], dtype=np.float64)


def judge_tags(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None) -> Tags:
    """The model's answers on tokenised sentences with ``labels``, -100 where a token is not to be judged.

    Args:
        order: class ``i`` of the data is class ``order[i]`` of the model; None where both agree.

    Raises:
        MismatchError, NonFiniteError: as ``predict_words``.
    """
    found = predict_words(model, dataset, tokenizer, batch_size=batch_size)
    logits = found.logits if order is None else found.logits[:, list(order)]
    named: dict[Any, str] = dict(model.config.id2label)
    own = [named[i] for i in sorted(named)]
    names = tuple(own if order is None else [own[i] for i in order])
    kind = EntityTags if is_scheme(names) else Tags
    return kind(logits.argmax(axis=-1), found.labels, found.counts, names, logits)
