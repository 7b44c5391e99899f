"""The options of a ``BitsAndBytesConfig``, in a file or an argument, checked before transformers reads them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.utils.quantization_config import BitsAndBytesConfig

from hf_shrink.errors import RecipeError
from hf_shrink.lines import first_line
from hf_shrink.tables import nearest


def as_stored(options: Any, where: str) -> dict[str, Any]:
    """Options of a ``BitsAndBytesConfig``, checked, as a dict; ``where`` they stand, for the error.

    transformers ignores options it does not know: a typo in ``nf4`` options would load another format.

    Raises:
        RecipeError: unknown options, or values that bitsandbytes cannot mean.
    """
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise RecipeError(f"{where}: must be a dict of BitsAndBytesConfig's options; got {options!r:.60}.")
    known = BitsAndBytesConfig(load_in_8bit=True).to_dict().keys()  # type: ignore[no-untyped-call]
    if strange := sorted(set(options) - known):
        raise RecipeError(f"{where}: unknown option {strange[0]!r:.60}.{nearest(strange[0], known)}")
    for key, allowed in _VALUES.items():
        if key in options and not allowed(options[key]):
            raise RecipeError(f"{where}: {key} {options[key]!r:.60}; allowed: {_ALLOWED[key]}.")
    if bool(options.get("load_in_8bit")) == bool(options.get("load_in_4bit")):
        raise RecipeError(f"{where}: needs one of load_in_8bit and load_in_4bit.")
    try:
        BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{where}: {first_line(error)}") from None
    return dict(options)


THRESHOLDS = "a number of type float, 0 or more"


def is_threshold(value: Any) -> bool:
    """Whether 8-bit layers can have it; 6 without a point is refused by transformers, too."""
    return type(value) is float and 0 <= value < math.inf


def _is_name(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str | torch.dtype) and str(value).removeprefix("torch.") in names


_FLOATS = ("float32", "bfloat16", "float16")
_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "quant_method": lambda value: getattr(value, "value", value) == "bitsandbytes",
    "bnb_4bit_quant_type": lambda value: value in ("nf4", "fp4"),
    "bnb_4bit_compute_dtype": lambda value: value is None or _is_name(*_FLOATS)(value),
    "bnb_4bit_quant_storage": lambda value: value is None or _is_name("uint8", *_FLOATS)(value),
    "llm_int8_threshold": is_threshold,
    "llm_int8_skip_modules": lambda value: value is None or (isinstance(value, list) and {*map(type, value)} <= {str}),
}
"""transformers takes any string and any number, and fails at the first forward pass, or never."""
_ALLOWED = {
    "quant_method": "bitsandbytes",
    "bnb_4bit_quant_type": "nf4, fp4",
    "bnb_4bit_compute_dtype": ", ".join(_FLOATS),
    "bnb_4bit_quant_storage": "uint8, float32, bfloat16, float16",
    "llm_int8_threshold": THRESHOLDS,
    "llm_int8_skip_modules": "a list of names",
}
