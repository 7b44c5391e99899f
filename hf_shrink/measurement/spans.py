"""What a model answers to questions about texts: a piece of the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.predict import batches
from hf_shrink.measurement.subjects import at_rest, explained
from hf_shrink.measurement.text_metrics import exact, shared_words

LONGEST = 30
"""Tokens of an answer at most."""
_COLUMNS = ("example", "offsets", "context", "answer_texts")


@dataclass(frozen=True)
class Spans:
    """Said and true answers of the same questions in the same order; of the true ones any will do."""

    predicted: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.labels):
            raise MismatchError(f"answers: {len(self.predicted)} do not fit {len(self.labels)} questions.")
        if not self.labels:
            raise MismatchError("answers: no questions to judge; the evaluation data is empty.")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def samples(self) -> str:
        """Questions and a digest of their answers."""
        return f"{len(self.labels)} questions, labels {sha256(repr(self.labels).encode()).hexdigest()[:8]}"

    @cached_property
    def matches(self) -> npt.NDArray[np.float64]:
        """1 where an answer is right, ``[questions]``."""
        return np.array([exact(said, true) for said, true in zip(self.predicted, self.labels, strict=True)])

    @cached_property
    def overlaps(self) -> npt.NDArray[np.float64]:
        """F1 of the words, ``[questions]``."""
        return np.array([shared_words(said, true) for said, true in zip(self.predicted, self.labels, strict=True)])


def judge_spans(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None) -> Spans:
    """The model's answers: of all pieces of at most 30 tokens in any window of a question, the likeliest.

    Args:
        model: with ``start_logits`` and ``end_logits``.
        dataset: windows as ``data.question_answering`` makes them for judging.
        tokenizer: pads them.
        order: places are not classes: None.

    Raises:
        MismatchError: columns are missing. NonFiniteError: a logit is NaN or infinite.
    """
    assert order is None, "places have no names"
    for column in _COLUMNS:
        if column not in dataset.column_names:
            raise MismatchError(f"evaluation data: no column {column!r} among {dataset.column_names}; tokenise it for judging.")
    told = {name: dataset[name] for name in _COLUMNS}
    best: dict[int, tuple[float, str]] = {}
    true: dict[int, tuple[str, ...]] = {}
    for i, starts, ends in sorted(_windows(model, dataset, tokenizer, batch_size), key=lambda window: window[0]):
        value, first, last = likeliest(starts, ends, np.array([place[0] >= 0 for place in told["offsets"][i]]))
        text = told["context"][i][told["offsets"][i][first][0] : told["offsets"][i][last][1]]
        question = told["example"][i]
        true[question] = tuple(told["answer_texts"][i])
        if question not in best or value > best[question][0]:
            best[question] = (value, text)
    return Spans(tuple(best[q][1] for q in sorted(best)), tuple(true[q] for q in sorted(true)))


def likeliest(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]
) -> tuple[float, int, int]:
    """Largest sum of a start and an end at most ``LONGEST`` tokens apart, both allowed, and its two places.

    Args:
        starts, ends: logits, ``[tokens]``.
        allowed: True at tokens of the context, at least one.
    """
    places = np.arange(len(starts))
    apart = places[None, :] - places[:, None]
    fits = (apart >= 0) & (apart < LONGEST) & allowed[:, None] & allowed[None, :]
    sums = np.where(fits, starts[:, None] + ends[None, :], -np.inf)
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(first), int(last)


def span_likelihood(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> tuple[float, float]:
    """Mean log-likelihood in nats of a true place, start and end alike, and the fraction of windows with both right."""
    first, last = dataset["start_positions"], dataset["end_positions"]
    likelihoods, right = [], []
    for i, starts, ends in _windows(model, dataset, tokenizer, batch_size):
        pairs = ((starts, first[i]), (ends, last[i]))
        likelihoods += [float(logits[place] - np.logaddexp.reduce(logits)) for logits, place in pairs]
        right.append(all(int(logits.argmax()) == place for logits, place in pairs))
    return float(np.mean(likelihoods)), float(np.mean(right))


def _windows(
    model: Any, dataset: Any, tokenizer: Any, batch_size: int
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Row number and the logits of its own tokens, batch by batch."""
    with explained("predicting"), at_rest(model):
        for rows, masks, outputs in batches(model, dataset, tokenizer, batch_size):
            both = zip(outputs["start_logits"].double().cpu(), outputs["end_logits"].double().cpu(), strict=True)
            for i, mask, (start, end) in zip(rows, masks.bool(), both, strict=True):
                starts, ends = start[mask].numpy(), end[mask].numpy()
                if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
                    raise NonFiniteError("predicting: a logit is NaN or infinite; check the model's weights.")
                yield i, starts, ends
