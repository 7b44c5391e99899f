"""The vectors that a model gives to texts, and how far they say which texts are alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.predict import batches
from hf_shrink.measurement.subjects import at_rest, explained
from hf_shrink.sentences import pooled


@dataclass(frozen=True)
class SentenceVectors:
    """Vectors of the same texts in the same order, float64 ``[samples, 1, width]``, of pairs ``[samples, 2, width]``.

    Attributes:
        vectors: of length 1.
        texts: a digest of the tokens.
    """

    vectors: npt.NDArray[np.float64]
    texts: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3 or not len(self.vectors):
            raise MismatchError(f"answers: vectors {self.vectors.shape} are not those of texts, or of none.")

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def samples(self) -> str:
        """Count, width and a digest: vectors of other widths do not compare."""
        what = "pairs of texts" if self.vectors.shape[1] == 2 else "texts"
        return f"{len(self.vectors)} {what}, {self.vectors.shape[2]} numbers each, texts {self.texts}"

    def cosines(self, other: "SentenceVectors") -> npt.NDArray[np.float64]:
        """Of each sample, the mean over its texts of the cosine with another model's vector."""
        return np.asarray((self.vectors * other.vectors).sum(axis=2).mean(axis=1))


@dataclass(frozen=True)
class ScoredPairs(SentenceVectors):
    """Pairs of texts with a number that says how alike they are, float64 ``[samples]``."""

    labels: npt.NDArray[np.float64]

    @cached_property
    def predicted(self) -> npt.NDArray[np.float64]:
        """The cosine of both vectors of each pair."""
        return np.asarray((self.vectors[:, 0] * self.vectors[:, 1]).sum(axis=1))


def judge_sentences(
    model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> SentenceVectors:
    """The model's vectors of tokenised texts: the mean of the last hidden states, scaled to length 1.

    Args:
        model: a headless one; a plain one will do.
        dataset: as ``data.sentence_embedding`` makes it for judging: ``pair``, maybe ``similarity``.
        order: vectors have no classes: None.

    Raises:
        MismatchError: labels for a head that the model does not have, or columns that are missing.
        NonFiniteError: a vector is NaN or infinite.
    """
    assert order is None, "vectors have no classes"
    if "labels" in dataset.column_names or "pair" not in dataset.column_names:
        raise MismatchError(
            f"evaluation data: columns {dataset.column_names} ask for the head of a task; {type(model).__name__} has none.\n"
            "Give a fine-tuned model, or data of task sentence-embedding."
        )
    found: dict[int, npt.NDArray[np.float64]] = {}
    with explained("predicting"), at_rest(model):
        for rows, masks, outputs in batches(model, dataset, tokenizer, batch_size):
            vectors = pooled(outputs.last_hidden_state.cpu(), masks).double().numpy()
            found |= zip(rows, vectors, strict=True)
    joined = np.stack([found[i] for i in range(len(found))])
    if not np.isfinite(joined).all():
        raise NonFiniteError("predicting: a vector has NaN or infinite numbers; check the model's weights.")
    each = max(dataset["pair"]) + 1
    digest = sha256(repr(list(dataset["input_ids"])).encode()).hexdigest()[:8]
    shaped = joined.reshape(len(joined) // each, each, -1)
    if "similarity" in dataset.column_names:
        return ScoredPairs(shaped, digest, np.asarray(dataset["similarity"][::each], dtype=np.float64))
    return SentenceVectors(shaped, digest)
