"""Folders that the tests of loading start from."""

from pathlib import Path

import pytest

from hf_shrink.loading.save import save
from tests.loading.asked import STORED, STRUCTURES, folder_of, in_memory
from tests.tiny import ALL_FAMILIES, tiny_classifier


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float folder of every family in several shards."""
    root = tmp_path_factory.mktemp("float")
    return {
        family: folder_of(tiny_classifier(family, layers=3, hidden=64, ffn=128), root / family, max_shard_size="60KB")
        for family in ALL_FAMILIES
    }


@pytest.fixture(scope="module")
def stored(folders, tmp_path_factory) -> dict[str, Path]:
    """Shapes alone, shapes with int8, int8 alone, nf4 alone."""
    root, found = tmp_path_factory.mktemp("stored"), {}
    for name, pruning, quantization in [
        ("shapes", "one target", "float"),
        ("shapes-int8", "one target", "int8"),
        ("int8", "nothing", "int8"),
        ("nf4", "nothing", "nf4"),
    ]:
        save(in_memory(folders["bert"], "bert", STRUCTURES[pruning], STORED[quantization]), root / name)
        found[name] = root / name
    return found
