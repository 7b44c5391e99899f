"""Peak memory of inference, taken in a process of its own: ``python -m hf_shrink.measurement.memory FOLDER``.

In the calling process the number would hold the leftovers of training and the other models.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from hf_shrink.errors import ResourceError, ShrinkError
from hf_shrink.graph_folders import holds_graph
from hf_shrink.lines import without_home
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.values import Measurement, plural
from hf_shrink.onnx_model import runtime

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
_MINUTES = 10


def memory(folder: Path, config: MeasurementConfig, *, threads: int) -> list[Measurement]:
    """Peak memory of loading ``folder`` and running one batch: resident, above what the imports take; on CUDA the device's.

    The batch is the largest of ``config.batch_sizes``. On CUDA it is what torch has allocated on the model's device, whose
    context and whose kernels' own work space are not in it.

    Raises:
        ResourceError: the process could not load or run the folder, or took longer than ten minutes.
    """
    size = max(config.batch_sizes)
    options = {"--batch-size": size, "--length": config.length, "--threads": threads}
    arguments = [str(part) for pair in options.items() for part in pair]
    # -P: a file of the current folder that is called like a module must not be imported
    command = [sys.executable, "-P", "-m", "hf_shrink.measurement.memory", str(folder), *arguments]
    try:
        child = subprocess.run(
            command, env=os.environ | _QUIET, capture_output=True, text=True, timeout=60 * _MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        raise ResourceError(f"peak memory of {folder.name}: no result after {_MINUTES} minutes.") from None
    if child.returncode:
        raise ResourceError(f"peak memory of {folder.name}: {_last_line(child.stderr, child.returncode)}")
    found = json.loads(child.stdout.splitlines()[-1])
    setting = f"{found['device']}, {plural(threads, 'thread')}, batch {size}, {config.length} tokens"
    setting = f"{setting}, {found['counted']}, {found['precision']}"
    return [Measurement(name="memory_peak", value=found["bytes"], unit="bytes", setting=setting)]


def _last_line(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else f"the process ended with code {code}, as it does when memory runs out."
    return without_home(line)[:300]


def _resident(key: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (peak) of this process.

    ``getrusage`` will not do on Linux: its peak is inherited from the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split(f"{key}:")[1].split()[0]) * 1024
    if key == "VmHWM":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, the system that comes here
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> None:
    """Forget the peak of the imports, where the system lets us; else a small model's peak would hide behind it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _main() -> None:
    parser = argparse.ArgumentParser(description="Print the peak memory of running a model folder, as JSON.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    try:
        print(json.dumps(_measure(options.folder, options.batch_size, options.length, options.threads)))
    except ShrinkError as error:
        sys.exit(" ".join(str(error).splitlines()))


def _measure(folder: Path, batch_size: int, length: int, threads: int) -> dict[str, object]:
    import torch

    from hf_shrink.measurement.inputs import random_inputs
    from hf_shrink.measurement.subjects import at_rest, device_of, explained, load, precision_of

    torch.set_num_threads(threads)
    _import_what_it_needs(folder)
    _reset_peak()
    before = _resident("VmRSS")
    model, _ = load(folder)
    with explained(f"running {folder.name}"), at_rest(model):
        model(**random_inputs(model, batch_size=batch_size, length=length))
    device = device_of(model)
    if device.type == "cuda":
        taken, counted = torch.cuda.max_memory_allocated(device), "allocated by torch in a fresh process"
    else:
        peak = max(_resident("VmHWM"), _resident("VmRSS"))
        taken, counted = max(peak - before, 0), "fresh process less its imports"
    return {"bytes": taken, "device": device.type, "precision": precision_of(model), "counted": counted}


def _import_what_it_needs(folder: Path) -> None:
    """Import the code of the architecture and of the quantisation now: it is no part of the model's own memory."""
    import transformers

    if holds_graph(folder):
        runtime()
        folder = folder.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # loading will say what is wrong
    for name in config.get("architectures") or []:
        getattr(transformers, name, None)
    if "quantization_config" in config:
        importlib.import_module("transformers.integrations.bitsandbytes")


if __name__ == "__main__":
    _main()
