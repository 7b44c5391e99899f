"""What the numbers were taken with, and nothing that says whose machine it was."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "hf_shrink", "bitsandbytes")


def environment() -> dict[str, str | int]:
    """Versions, the CPU's model name, its cores and torch's threads; no host name, user or path."""
    import torch

    found: dict[str, str | int] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu(), "threads": torch.get_num_threads()}


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
    return next((name for name in names if name), platform.processor() or platform.machine())
