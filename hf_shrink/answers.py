"""What a saved model says of labelled data, its classes matched by name: by index a perfect model may score nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_shrink.errors import MismatchError
from hf_shrink.lines import few
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.judges import judge
from hf_shrink.measurement.subjects import load
from hf_shrink.models.load import config_of

_PLAIN = re.compile(r"LABEL_\d+")


def by_name(folder: Path, label_names: Sequence[str], dataset: Any, tokenizer: Any, *, batch_size: int) -> Answers | None:
    """The model's answers in the order of ``label_names``, or None where its own order is that already.

    Args:
        folder: of the saved model.
        label_names: classes of the data, in the order of its labels. Plain ones (``LABEL_0``, ...) are no names, and
            some tasks have no classes: None then.
        dataset: tokenised, with ``labels``.
        tokenizer: pads it.
        batch_size: rows at a time.

    Raises:
        MismatchError: the model knows other classes.
    """
    order = order_by_name(folder, label_names)
    if order is None:
        return None
    model, missing = load(folder)
    if missing:
        return None  # the measurement refuses such a model
    return judge(model, dataset, tokenizer, batch_size=batch_size, order=order)


def order_by_name(folder: Path, label_names: Sequence[str]) -> tuple[int, ...] | None:
    """Which class of the model in ``folder`` each of ``label_names`` is; None and errors as in ``by_name``."""
    names: dict[Any, str] = dict(config_of(str(folder)).id2label or {})
    own = [names[i] for i in sorted(names)]
    if own == list(label_names) or all(map(_PLAIN.fullmatch, label_names)):
        return None
    if sorted(own) != sorted(label_names):
        raise MismatchError(
            f"{folder.name}: its {len(own)} labels are {few(own, 4)}; the data has {len(label_names)}: {few(label_names, 4)}.\n"
            "Judge a model of the same classes, or set their names in id2label of its config."
        )
    return tuple(own.index(name) for name in label_names)
