"""How the rows of each task are read: the same names as in ``hf_shrink.tasks``."""

from collections.abc import Mapping

from hf_shrink.data.causal_lm import NextTokenFormat
from hf_shrink.data.format import Format
from hf_shrink.data.text_classification import ClassFormat

FORMATS: Mapping[str, type[Format]] = {
    "text-classification": ClassFormat,
    "causal-lm": NextTokenFormat,
}
