"""A run that is killed again and again ends as the run that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults


@pytest.mark.timeout(900)
def test_sixty_kills_lose_nothing(tmp_path, capsys):
    """Of a hundred kills of a stock training thirty left a run that could not resume, or that resumed as another run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_server", str(tmp_path), "60"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\nkills: {result}")
    assert result["kills"] == 60 and result["runs"] > 5
    assert result["stuck"] == 0, [log.read_text()[-2000:] for log in tmp_path.glob("run-*.log")]
    assert result["differing"] == 0
    assert result["most_lost"] <= result["save_steps"]
    assert result["in_save"] >= 12, "fewer than a fifth of the kills landed inside a save: save more often"
