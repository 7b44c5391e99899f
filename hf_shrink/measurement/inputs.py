"""Inputs for timing and counting: random, valid, the same for the same seed."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_shrink.errors import RecipeError
from hf_shrink.families import longest as longest
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.subjects import device_of
from hf_shrink.onnx_model import OnnxModel


def random_inputs(model: Any, *, batch_size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``[batch_size, length]``: words of the model's vocabulary, nothing padded.

    A decoder beside an encoder reads as many, as ``decoder_input_ids``.

    Padding, start and end tokens are not drawn: a model that looks for the last real token must find it at the end.

    Raises:
        RecipeError: the model has fewer positions than ``length``.
    """
    if (limit := longest(model)) is not None and length > limit:
        raise RecipeError(f"measurement.length: {length} tokens, but the model takes at most {limit}; set length: {limit}.")
    config = model.config
    named = [config.pad_token_id, getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)]
    special = {i for ids in named for i in (ids if isinstance(ids, list) else [ids])}  # Llama 3 Instruct has several ends
    table = config.vocab_size if isinstance(model, OnnxModel) else model.get_input_embeddings().num_embeddings
    words = torch.tensor([i for i in range(table) if i not in special])
    drawn = torch.randint(len(words), (batch_size, length), generator=torch.Generator().manual_seed(seed))
    ids = words[drawn].to(device_of(model))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else inputs


def check_lengths(config: MeasurementConfig, model: nn.Module) -> None:
    """Refuse lengths at which a model could not be timed when all is trained. Raises RecipeError."""
    limit, most = longest(model), max(config.length, *config.more_lengths, 0)
    if limit is not None and most > limit:
        key = "length" if most == config.length else "more_lengths"
        raise RecipeError(f"measurement.{key}: {most} tokens, but a model takes at most {limit}; give at most {limit}.")
