"""The one call that measures any model the same way, however it was made."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.measurement.answering import answers_of
from hf_shrink.measurement.confidence import reliability
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measures import MEASURES
from hf_shrink.measurement.subjects import Bench, Rewritten, Subject, load
from hf_shrink.measurement.values import Measurement, Report


def measure(
    model: Any,
    *,
    dataset: Any | None = None,
    tokenizer: Any | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    config: MeasurementConfig | None = None,
) -> Report:
    """Measure a model with the head of a task: a model in memory, or a folder that transformers can load.

    Args:
        model: the model, or the path of its folder.
        dataset: tokenised evaluation data with ``labels``; without it quality is left out.
        tokenizer: pads the evaluation data; None takes the folder's own.
        folder: where a model given in memory is saved; without it bytes on disk and memory are left out.
        name: name of the report; None takes the folder's, else "model".
        config: how to measure; None takes the defaults.

    Raises:
        MismatchError: the folder cannot be loaded, or the data does not fit.
        RecipeError: the config asks for what one model alone cannot give, or for what it is no model for.
    """
    if config is not None:
        check_alone(config)
        if config.floor is not None:
            raise RecipeError("measurement.floor: would be ignored: it is learnt from the texts of a recipe; remove it.")
    given = model if isinstance(model, str | Path) else folder
    place = None if given is None else Path(given)
    subject = Subject(
        name=name or (place.resolve().name if place else "model"),
        model=None if isinstance(model, str | Path) else model,
        folder=place,
    )
    return measure_all([subject], dataset=dataset, tokenizer=tokenizer, config=config)[0]


def check_alone(config: MeasurementConfig) -> None:
    """Refuse what is asked of one finished model and would be missing from its report without a word.

    Raises:
        RecipeError: energy or attributions are asked for.
    """
    if config.energy is not None:
        raise RecipeError("measurement.energy: is taken while a run trains; a finished model does not tell. Set it to null.")
    if config.explained is not None:
        raise RecipeError("measurement.explain: sets models against a baseline, and here is one alone. Set it to false.")


def measure_all(
    subjects: Sequence[Subject],
    *,
    dataset: Any | None = None,
    tokenizer: Any | None = None,
    config: MeasurementConfig | None = None,
    baseline: int = 0,
    rewritten: Rewritten | None = None,
) -> list[Report]:
    """Measure several subjects side by side: they take turns at the clock and are judged on the same samples.

    A subject with a folder and no model is loaded; one with a model and no predictions answers ``dataset``. Quality of all
    others is set against ``subjects[baseline]``, in pairs. Arguments and errors as in ``measure``; ``rewritten`` gives the
    disturbed texts that ``measurement.robustness`` asks for.
    """
    settings = config or MeasurementConfig()
    ready = [_loaded(subject) for subject in subjects]
    bench = Bench(tuple(ready), settings, baseline, dataset=dataset, tokenizer=tokenizer, rewritten=rewritten)
    found: list[list[Measurement]] = [[] for _ in ready]
    for entry in MEASURES.values():
        for own, more in zip(found, entry.function(bench), strict=True):
            own += more
    bins = [reliability(answers) for answers in answers_of(bench)]
    return [
        Report(name=s.name, title=s.title, did=s.did, notes=s.notes, measurements=tuple(m), reliability=r)
        for s, m, r in zip(ready, found, bins, strict=True)
    ]


def _loaded(subject: Subject) -> Subject:
    if subject.folder is None:
        return subject
    if not subject.folder.is_dir():
        raise MismatchError(f"{subject.folder.name}: not a folder. Give the folder that `save_pretrained` or a run wrote.")
    if subject.model is not None:
        return subject
    model, missing = load(subject.folder)
    return dataclasses.replace(subject, model=model, missing=missing)
