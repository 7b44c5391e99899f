"""What turns stored tensors into weights at loading: for embeddings ours, for the rest what saving must not run backwards."""

import re
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter

from hf_shrink.quantization.embeddings import check_packed, tables, unpack


def drop_quantizer_conversions(model: Any) -> list[Any] | None:
    """Take out of ``model`` what turned stored tensors into quantised weights at loading; returns what was there before.

    Saving runs those steps backwards, which transformers has not implemented for quantisers: it raises NotImplementedError.
    They need no reversal, because a quantised weight's own state dict is already what is stored.
    """
    before: list[Any] | None = getattr(model, "_weight_conversions", None)
    if before is not None:
        model._weight_conversions = [step for step in before if not _is_quantizers(step)]
    return before


def _is_quantizers(step: Any) -> bool:
    return any(hasattr(operation, "hf_quantizer") for operation in getattr(step, "operations", ()))


class ReadTable(ConversionOps):
    """A table as it lies in the file -> floats in the precision of the model."""

    hf_quantizer = (
        "hf_shrink"  # what marks the step as a quantizer's: the tensor comes as it is stored, and saving leaves it out
    )

    def convert(self, input_dict: Any, model: Any = None, full_layer_name: Any = None, **more: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """``full_layer_name``: of the parameter, which is still without weights."""
        (tensor,) = input_dict.values()
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        expected = model.get_parameter(full_layer_name)
        if tensor.is_floating_point():
            return {full_layer_name: tensor.reshape(tensor.shape[-2:]).to(expected.dtype)}
        check_packed(tensor, full_layer_name)
        return {full_layer_name: unpack(tensor, expected.dtype)}


def table_conversions(model: Any) -> list[WeightConverter]:
    """One for each table of ``model``, by its path below the base model, so that a file of another head fits as well."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    paths = [name.removeprefix(prefix) for name in tables(model)]
    return [WeightConverter(f"{re.escape(path)}$", path, [ReadTable()]) for path in paths]
