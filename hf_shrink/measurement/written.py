"""What a model writes when it is given a text, and how likely it finds what should be written."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.next_tokens import padded
from hf_shrink.measurement.subjects import at_rest, device_of, explained
from hf_shrink.measurement.text_metrics import ORDERS, character_counts, common_words
from hf_shrink.measurement.token_answers import TokenAnswers, Told, columns_of, told, told_of_rows


@dataclass(frozen=True)
class Written(TokenAnswers):
    """Texts that were written and those that should have been, and the tokens of the latter, each told from those before.

    Attributes:
        predicted, references: one text a row.
    """

    predicted: tuple[str, ...]
    references: tuple[str, ...]

    rows: ClassVar[str] = "texts"
    counted: ClassVar[str] = "target tokens"

    @cached_property
    def overlaps(self) -> npt.NDArray[np.float64]:
        """ROUGE-L of each text, ``[texts]``."""
        return np.array([common_words(said, true) for said, true in zip(self.predicted, self.references, strict=True)])

    @cached_property
    def characters(self) -> npt.NDArray[np.float64]:
        """Of each text and order: n-grams that are right, said, and there; ``[texts, 6 * 3]``."""
        counts = [character_counts(said, true) for said, true in zip(self.predicted, self.references, strict=True)]
        return np.array(counts, dtype=np.float64).reshape(len(counts), ORDERS * 3)


def judge_written(
    model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> Written:
    """What the model writes, word by word the likeliest, at most as many tokens as the longest target has.

    Args:
        model: an encoder with a decoder.
        dataset: ``input_ids``, ``labels`` and ``target``, the text of the labels.
        tokenizer: makes texts of tokens.
        batch_size: rows at a time, at most.
        order: tokens are not classes: None.

    Raises:
        MismatchError: columns are missing. NonFiniteError: a logit that counts is NaN or infinite.
    """
    assert order is None, "tokens are known by their ids"
    if "target" not in dataset.column_names:
        raise MismatchError(f"evaluation data: no column 'target' among {dataset.column_names}; tokenise it for judging.")
    parts = told_targets(model, dataset, batch_size=batch_size)
    ids, labels = columns_of(dataset)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts: dict[int, str] = {}
    with explained("writing"), at_rest(model):
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = padded([ids[i] for i in rows], device_of(model))
            out = model.generate(**batch, max_new_tokens=max(map(len, labels)), do_sample=False, num_beams=1)
            texts |= zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True)
    said = tuple(texts[i].strip() for i in range(len(ids)))
    return Written.joined(parts, predicted=said, references=tuple(dataset["target"]))


def told_targets(model: Any, dataset: Any, *, batch_size: int = 32) -> list[Told]:
    """How likely the model finds the targets, each token told from the text and the true tokens before it."""
    ids, labels = columns_of(dataset)

    def run(rows: list[int]) -> list[Told]:
        length = max(len(labels[i]) for i in rows)
        true = torch.tensor([[*labels[i], *[-100] * (length - len(labels[i]))] for i in rows], device=device_of(model))
        before = model.prepare_decoder_input_ids_from_labels(true)
        logits = model(**padded([ids[i] for i in rows], device_of(model)), decoder_input_ids=before, use_cache=False).logits
        return [told(row, own) for row, own in zip(logits, true, strict=True)]

    return told_of_rows(model, run, batch_size=batch_size, lengths=list(map(len, labels)))
