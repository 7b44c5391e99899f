"""Whether two classifiers look at the same words: agreement of token attributions; the one file that needs captum."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.measurement.answering import answers_of, tokenizer_of
from hf_shrink.measurement.estimates import correlation, midranks
from hf_shrink.measurement.intervals import draw_scores, interval
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Bench, Subject, device_of, explained
from hf_shrink.measurement.values import Measurement
from hf_shrink.onnx_model import OnnxModel

Floats = npt.NDArray[np.float64]
_BATCH = 32


def attribution(bench: Bench) -> list[list[Measurement]]:
    """Spearman correlation, row by row, of each model's token attributions with the baseline's, and their mean.

    Both are asked for the class that the baseline chooses. Left out: graphs, which have no gradients, models with a
    vocabulary of their own, and rows of fewer than three words.

    Raises:
        RecipeError: it is asked for, and the baseline is no classifier that can be asked.
        ResourceError: captum is not installed.
    """
    config = bench.config.explained
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    if config is None:
        return found
    check_installed()
    base, said = bench.subjects[bench.baseline], answers_of(bench)[bench.baseline]
    if not _has_gradients(base) or not isinstance(said, Predictions) or bench.dataset is None:
        raise RecipeError("measurement.explain: the baseline is no classifier with labelled data to ask; turn it off.")
    rows = [i for i in range(min(config.rows, len(said))) if _words(bench, i).sum() > 2]
    if not rows:
        raise RecipeError(f"measurement.explain: none of the first {config.rows} rows has three words; turn it off.")
    theirs = _of_rows(base, bench, rows, said.predicted, config.steps)
    setting = f"{len(rows)} of {said.samples}, {config.steps} steps, {bench.config.bootstrap} resamples"
    for i, subject in enumerate(bench.subjects):
        if i != bench.baseline and _has_gradients(subject) and subject.tokenizer is None:
            own = _of_rows(subject, bench, rows, said.predicted, config.steps)
            same = np.array([_spearman(x, y) for x, y in zip(own, theirs, strict=True)])
            drawn = draw_scores([functools.partial(_mean, same)], len(same), bench.config.bootstrap)[0]
            found[i].append(
                Measurement(
                    name="attribution_agreement",
                    value=float(same.mean()),
                    unit="Spearman",
                    setting=setting,
                    interval=interval(drawn),
                )
            )
    return found


def attributions(model: nn.Module, ids: Tensor, mask: Tensor, reference: Tensor, target: int, *, steps: int) -> Floats:
    """Integrated gradients of one logit on the input embeddings, summed over each token (arXiv:1703.01365, eq. 1).

    Args:
        model: any with ``get_input_embeddings`` whose output has ``logits`` ``[rows, classes]``.
        ids, mask: of one row, int64 ``[tokens]``.
        reference: the ids that stand for no text, ``[tokens]``.
        target: number of the logit.
        steps: points at which gradients are taken.

    Returns:
        ``[tokens]``; they add up to the logit less the logit of the reference, as far as the steps allow.
    """
    from captum.attr import LayerIntegratedGradients

    def logits(rows: Tensor, masks: Tensor) -> Tensor:
        found: Tensor = model(input_ids=rows, attention_mask=masks).logits
        return found

    with _in_evaluation(model):
        method = LayerIntegratedGradients(logits, model.get_input_embeddings())  # type: ignore[operator]
        found = method.attribute(
            ids[None], reference[None], target=target, additional_forward_args=(mask[None],), n_steps=steps,
            internal_batch_size=_BATCH,
        )  # fmt: skip
    return np.asarray(found[0].detach().double().sum(dim=-1).cpu().numpy())


def check_installed() -> None:
    """A ``ResourceError`` where captum is missing."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        raise ResourceError("measurement.explain: captum is not installed. Try: pip install 'hf-shrink[explain]'") from None


def _has_gradients(subject: Subject) -> bool:
    return subject.model is not None and not isinstance(subject.model, OnnxModel)


def _words(bench: Bench, row: int) -> npt.NDArray[np.bool_]:
    """True where a token of a row is part of the text: neither added by the tokenizer nor padding."""
    assert bench.dataset is not None
    special = set(tokenizer_of(bench.subjects[bench.baseline], bench).all_special_ids)
    return np.array([token not in special for token in bench.dataset[row]["input_ids"]])


def _of_rows(subject: Subject, bench: Bench, rows: list[int], chosen: npt.NDArray[np.int64], steps: int) -> list[Floats]:
    assert bench.dataset is not None and subject.model is not None
    tokenizer, device = tokenizer_of(subject, bench), device_of(subject.model)
    found = []
    with explained(f"attributions of {subject.name}"):
        for row in rows:
            words = _words(bench, row)
            ids = torch.tensor(bench.dataset[row]["input_ids"], device=device)
            reference = torch.where(torch.from_numpy(words).to(device), tokenizer.pad_token_id, ids)
            target = int(chosen[row]) if subject.order is None else subject.order[int(chosen[row])]
            whole = attributions(subject.model, ids, torch.ones_like(ids), reference, target, steps=steps)
            found.append(whole[words])
    return found


def _spearman(own: Floats, other: Floats) -> float:
    ones = np.ones((1, len(own)))
    return float(correlation(midranks(own, ones), midranks(other, ones), ones)[0])


def _mean(values: Floats, weights: npt.NDArray[Any]) -> Floats:
    return np.asarray(weights @ values / len(values))


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module leaves in the mode it came in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
