"""A module that runs as two gloo processes on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_on_two(module: str, folder: Path) -> None:
    """``torchrun -m MODULE FOLDER``; its errors are the test's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", module, str(folder)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
