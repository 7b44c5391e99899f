"""Every ``train()`` collects garbage once: what the imports left need not be walked through each time."""

import gc

import pytest

import hf_shrink.training.trainer  # noqa: F401


@pytest.fixture(autouse=True, scope="package")
def _imports_are_no_garbage() -> None:
    gc.collect()
    gc.freeze()
