"""Who judges a model: by its task, the function that collects its answers to labelled data."""

from collections.abc import Callable, Mapping
from typing import Any

from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.next_tokens import judge_next_tokens
from hf_shrink.measurement.predict import judge_classes
from hf_shrink.tasks import task_of

Judge = Callable[..., Answers]
"""``(model, dataset, tokenizer, *, batch_size) -> Answers``."""

JUDGES: Mapping[str, Judge] = {"text-classification": judge_classes, "causal-lm": judge_next_tokens}


def judge(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> Answers:
    """The answers of any model with a head to tokenised data with ``labels``; its class says what it is for.

    Raises:
        MismatchError: data, tokenizer and model do not fit together.
        NonFiniteError: a logit is NaN or infinite.
    """
    task = task_of(type(model).__name__, getattr(model.config, "problem_type", None)) or "text-classification"
    return JUDGES[task](model, dataset, tokenizer, batch_size=batch_size)
