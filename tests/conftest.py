"""Settings every test runs under: no network, one thread, no colours, caches in a folder of the run's own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
from filelock import FileLock  # noqa: E402

from hf_shrink import Recipe  # noqa: E402
from tests.project import make_project, tiny_overrides  # noqa: E402

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, a tiny data set, and a finished run of the quickstart recipe on them in ``runs/quickstart``.

    Made once for all processes of a test run: tests read it, or work on a copy (``own``).
    """
    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if os.environ.get("PYTEST_XDIST_WORKER") else here) / "project"
    with FileLock(f"{folder}.lock"):
        if not (folder / "stderr.txt").exists():
            _finish(folder)
    return folder


def _finish(folder: Path) -> None:
    make_project(folder)
    (folder / "recipes").mkdir()
    overrides = [*tiny_overrides(Path(), memory=True), "measurement.robustness={rows: 12}"]
    recipe = Recipe.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides=overrides)
    (folder / "recipes" / "quickstart.yaml").write_text(recipe.to_yaml())
    done = subprocess.run(
        [str(BIN / "hf-shrink"), "run", "recipes/quickstart.yaml", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout.json").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)


@pytest.fixture
def own(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished project, as the current folder."""
    copy = tmp_path / "own"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    yield copy
