"""A fake Hub with a process that publishes to it by the real client, Xet on and Xet off, and a folder to publish."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.publishing.fake_hub import WRITER, FakeHub
from tests.publishing.faulty_http import Fault

ROOT = Path(__file__).parent.parent.parent
CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\ntags:\n- hf-shrink\n---\n\n# a model\n"


def client_env(hub: FakeHub, home: Path, *, xet: bool, token: str = WRITER) -> dict[str, str]:
    """The environment of a process that takes ``hub`` for the Hub."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": str(int(not xet)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_XET_TELEMETRY_ENABLED": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@dataclass
class Client:
    """The publishing process of one fake Hub."""

    hub: FakeHub
    process: subprocess.Popen[str]
    errors: Path

    def __call__(self, call: str, *, faults: tuple[Fault, ...] = (), **job: Any) -> dict[str, Any]:
        """The answer to one job, with these faults on the way; the hub's log starts anew."""
        self.hub.faults[:], self.hub.log[:] = faults, ()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"call": call, **job}, default=str) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.hub.faults.clear()
        return dict(answer)


@pytest.fixture(scope="session", params=[True, False], ids=["xet", "lfs"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One with Xet as users have it, one without."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "cas").mkdir()
    errors = folder / "errors.txt"
    with FakeHub(folder / "cas") as hub, errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.publishing.publisher"],
            env={**client_env(hub, folder / "home", xet=request.param), "HF_DEBUG": "1", "RUST_LOG": "debug"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert process.stdin is not None
        yield Client(hub, process, errors)
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # a call that was given up on may hold it
            process.kill()
            process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that can be published: config, weights, tokenizer, card."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "words": ["w"] * 600}))
    (folder / "README.md").write_text(CARD)
    save_file({"weight": torch.randn(64, 64)}, folder / "model.safetensors")
    return folder
