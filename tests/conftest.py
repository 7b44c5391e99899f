"""Settings every test runs under: no network, one thread, no colours, caches in a folder of the run's own."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="hf-shrink-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=_CACHE.name,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    NO_COLOR="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
