"""How the rows of each task are read: the same names as in ``hf_shrink.tasks``."""

from collections.abc import Mapping

from hf_shrink.data.causal_lm import NextTokenFormat
from hf_shrink.data.format import Format
from hf_shrink.data.masked_lm import MaskedTokenFormat
from hf_shrink.data.multi_label import LabelSetFormat
from hf_shrink.data.question_answering import SpanFormat
from hf_shrink.data.sentence_embedding import SentenceFormat
from hf_shrink.data.seq2seq import TargetFormat
from hf_shrink.data.text_classification import ClassFormat
from hf_shrink.data.text_regression import NumberFormat
from hf_shrink.data.token_classification import TagFormat

FORMATS: Mapping[str, type[Format]] = {
    "text-classification": ClassFormat,
    "multi-label-classification": LabelSetFormat,
    "text-regression": NumberFormat,
    "token-classification": TagFormat,
    "causal-lm": NextTokenFormat,
    "masked-lm": MaskedTokenFormat,
    "question-answering": SpanFormat,
    "sentence-embedding": SentenceFormat,
    "seq2seq": TargetFormat,
}
