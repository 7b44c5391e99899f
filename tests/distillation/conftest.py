"""Teacher caches in several small files."""

import pytest

from hf_shrink.distillation import cache_writing


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writing, "_SHARD_ROWS", 3)
