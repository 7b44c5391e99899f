"""Who judges a model: by its task, the function that collects its answers to labelled data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.estimates import judge_estimates
from hf_shrink.measurement.label_sets import judge_label_sets
from hf_shrink.measurement.masked_tokens import judge_masked_tokens
from hf_shrink.measurement.next_tokens import judge_next_tokens
from hf_shrink.measurement.predictions import judge_classes
from hf_shrink.measurement.sentence_vectors import judge_sentences
from hf_shrink.measurement.spans import judge_spans
from hf_shrink.measurement.tags import judge_tags
from hf_shrink.measurement.written import judge_written
from hf_shrink.tasks import problem_type_of, task_of

Judge = Callable[..., Answers]
"""``(model, dataset, tokenizer, *, batch_size, order) -> Answers``."""

JUDGES: Mapping[str, Judge] = {
    "text-classification": judge_classes,
    "multi-label-classification": judge_label_sets,
    "text-regression": judge_estimates,
    "token-classification": judge_tags,
    "causal-lm": judge_next_tokens,
    "masked-lm": judge_masked_tokens,
    "question-answering": judge_spans,
    "sentence-embedding": judge_sentences,
    "seq2seq": judge_written,
}


def judge(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None) -> Answers:
    """The answers of any model with a head to tokenised data with ``labels``; its class says what it is for.

    Args:
        order: class ``i`` of the data is class ``order[i]`` of the model; None where both agree, or where there are none.

    Raises:
        MismatchError: data, tokenizer and model do not fit together.
        NonFiniteError: a logit is NaN or infinite.
    """
    task = task_of(type(model).__name__, problem_type_of(model.config)) or "text-classification"
    return JUDGES[task](model, dataset, tokenizer, batch_size=batch_size, order=order)
