"""Any number of labels for each text, or pair of texts."""

from collections.abc import Sequence

import pyarrow as pa

from hf_shrink.data.format import Columned
from hf_shrink.data.label_lists import encode_lists
from hf_shrink.data.rows import Rows
from hf_shrink.data.text_classification import ClassFormat, strings


class LabelSetFormat(ClassFormat):
    """``text``, for pairs ``text_pair``, and ``label``: for each class 1.0 where the text has it, else 0.0."""

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """Lists of names or of whole numbers; an empty list is a text without a label."""
        names, rows = encode_lists(splits, "label")
        places = range(len(names))
        sets = [[[float(i in labels) for i in places] for labels in map(set, own)] for own in rows]
        pairs = zip(splits, sets, strict=True)
        return names, [{**strings(split), "label": pa.array(own, pa.list_(pa.float32()))} for split, own in pairs]
