"""A student of other sizes, which knows nothing yet: the config of a model with some of its sizes changed."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.families import FAMILIES
from hf_shrink.lines import first_line
from hf_shrink.tasks import TASKS

_WHERE = "student.config"


def resized(config: PreTrainedConfig, sizes: Mapping[str, int]) -> PreTrainedConfig:
    """A config of the same kind with other sizes; labels, vocabulary, tied embeddings and special tokens stay.

    Where the width of a head was that of the model divided by the heads, it is so again. How a checkpoint is stored is no
    part of it.

    Args:
        config: stays as it is.
        sizes: by the names that most configs use; GPT-2's ``n_embd`` is ``hidden_size``, for instance.

    Raises:
        RecipeError: a size that this kind of model has not, or sizes that do not go together.
    """
    kind, data = type(config).__name__, config.to_dict()
    for gone in ("quantization_config", "auto_map", "layer_types" if "num_hidden_layers" in sizes else "auto_map"):
        data.pop(gone, None)
    follows = "head_dim" not in sizes and _head_dim(config) == config.hidden_size // config.num_attention_heads
    for word, size in sizes.items():
        key = _key(config, word)
        if key not in data:
            raise RecipeError(f"{_WHERE}.{word}: {kind} has no such size; remove it.")
        data[key] = size
    if follows and "head_dim" in data:
        data["head_dim"] = None
    _check(data, config, kind)
    try:
        return type(config).from_dict(data)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise RecipeError(f"{_WHERE}: {first_line(error.__cause__ or error)}") from None


def from_scratch(task: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A model with the head of a task and random weights in float32, in eval mode; seed before the call."""
    auto: Any = getattr(transformers, TASKS[task].auto_class)
    made: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    made.train(False)
    return made


def sizes_of(config: PreTrainedConfig, words: Mapping[str, int]) -> dict[str, int]:
    """The sizes that say most, and those of ``words``, as the config has them."""
    asked = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", *words)
    found = {word: getattr(config, _key(config, word), None) for word in asked}
    return {word: size for word, size in found.items() if size is not None}


def _key(config: PreTrainedConfig, word: str) -> str:
    """What this kind of config calls a size."""
    family = FAMILIES.get(config.model_type)
    if word == "intermediate_size" and family is not None:
        return family.ffn_width
    return dict(config.attribute_map).get(word, word)


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _check(data: Mapping[str, Any], config: PreTrainedConfig, kind: str) -> None:
    """What transformers would find when the model is built, or when it runs."""
    width, heads = (int(data[_key(config, word)]) for word in ("hidden_size", "num_attention_heads"))
    shared = data.get("num_key_value_heads") or heads
    if heads % shared:
        raise RecipeError(f"{_WHERE}.num_key_value_heads: {heads} heads cannot share {shared}; give a divisor of {heads}.")
    if width % heads and not data.get("head_dim"):
        raise RecipeError(f"{_WHERE}: a hidden_size of {width} cannot be split over {heads} heads of {kind}; give a multiple.")
