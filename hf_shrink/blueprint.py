"""A model without its weights, for plans."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.loading.shapes import resize
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig
from hf_shrink.models.load import config_of
from hf_shrink.models.reference import refuse_adapter, shown
from hf_shrink.models.scratch import resized
from hf_shrink.quantization.quantize import existing_quantization
from hf_shrink.tasks import TASKS


def blueprint(
    task: str,
    reference: str,
    revision: str | None,
    label_names: tuple[str, ...] | None,
    download: bool,
    sizes: Mapping[str, int] | None = None,
) -> PreTrainedModel:
    """Right in every shape, on the meta device, in no time.

    Args:
        task: a name of ``TASKS``: which head.
        reference: a Hub id, a folder, or ``package:NAME/PATH``.
        revision: commit, tag or branch on the Hub.
        label_names: of a model that is to be trained, which is then in float32 (empty where the task has no classes); None
            for one that stays as it is stored.
        download: whether a config that is not in the cache may be fetched.
        sizes: of a model from scratch, where they differ from the config's; None for a model that is loaded.

    Raises:
        RecipeError: a quantised model is to be trained, or sizes do not fit.
        ShrinkError: as ``config_of``.
    """
    refuse_adapter(reference)
    config = config_of(reference, task=task, revision=revision, label_names=label_names, download=download)
    config = config if sizes is None else resized(config, sizes)
    precision = {} if label_names is None else {"dtype": torch.float32}
    auto: Any = getattr(transformers, TASKS[task].auto_class)
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, **precision)
    if label_names is not None and (stored := existing_quantization(model)) is not None:
        raise RecipeError(
            f"{shown(reference)}: quantised ({stored}), which cannot be trained; name the float model it came from."
        )
    record = getattr(config, "quantization_config", None)
    if isinstance(record, dict) and record.get("quant_method") == METHOD:
        shapes = ShrinkConfig(**record)
        resize(model, shapes.shapes, shapes.head_dim)
    return model
