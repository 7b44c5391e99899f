"""Batches that pruning and quantising in one step read. What these prevent: a command and its recipe that read other rows."""

import pytest
from datasets import Dataset

from hf_shrink.samples import batches_of


@pytest.mark.parametrize(
    ("rows", "length", "asked", "sizes"),
    [
        (600, 4, 512, [32] * 16),  # 512 rows at most
        (70, 4, 512, [32, 32, 6]),
        (600, 4, 40, [32, 8]),
        (600, 1024, 512, [4] * 16),  # 65,536 tokens at most, 4,096 in a batch
        (3, 100_000, 512, [1]),  # a row longer than all of that is one batch
    ],
)
def test_as_many_rows_as_memory_allows_and_the_same_for_everyone(rows, length, asked, sizes):
    data = Dataset.from_dict({"input_ids": [[row, *[0] * (length - 1)] for row in range(rows)]})
    first, last = (
        batches_of(data, lambda found: {"rows": [r["input_ids"][0] for r in found]}, asked, last=end) for end in (0, 1)
    )
    assert [len(batch["rows"]) for batch in first] == sizes == [len(batch["rows"]) for batch in last]
    count = sum(sizes)
    assert [row for batch in first for row in batch["rows"]] == list(range(count))
    assert [row for batch in last for row in batch["rows"]] == list(range(rows - count, rows))
