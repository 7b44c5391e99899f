"""``hf shrink``: the hf command finds ours and hands every word on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with the extension in it, as the README says."""
    folder = tmp_path / "home/.local/share/hf/extensions/hf-shrink"
    folder.mkdir(parents=True)
    (folder / "hf-shrink").symlink_to(BIN / "hf-shrink")
    manifest = {
        "owner": "somebody",
        "repo": "hf-shrink",
        "repo_id": "somebody/hf-shrink",
        "short_name": "shrink",
        "executable_path": str(folder / "hf-shrink"),
        "type": "binary",
        "installed_at": "2026-01-01T00:00:00+00:00",
        "description": "Make Transformers models smaller",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "home"


def hf(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return subprocess.run(
        [str(BIN / "hf"), *words], env=env, cwd=home, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_hf_command_lists_and_dispatches(home: Path):
    """A renamed script or a word that the two commands read differently shows only in a user's terminal."""
    assert "shrink" in hf(home, "--help").stdout
    done = hf(home, "shrink", "plan", "recipe.yaml", "--set", "seed=1", "--json")
    assert done.returncode == 2 and "recipe.yaml: no such file" in done.stderr and done.stdout == "", "exit code and message"
    (home / "recipe.yaml").write_text(
        "version: 1\ntask: text-classification\nmodel: a/b\noutput_dir: x\ndata: {dataset: a/b}\nsede: 1\n"
    )
    done = hf(home, "shrink", "plan", "recipe.yaml")
    assert done.returncode == 2 and "Did you mean 'seed'" in done.stderr
