"""Let a model that came from a bitsandbytes checkpoint be saved again."""

from typing import Any


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
