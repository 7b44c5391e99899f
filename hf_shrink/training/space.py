"""Does the disk hold the checkpoints? Asked before the first step, not after the first night."""

import shutil
from pathlib import Path

from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_shrink.errors import ResourceError
from hf_shrink.files import files_below
from hf_shrink.measurement.numbers import quantity
from hf_shrink.training.store import checkpoints


def check_space(folder: Path, *, size: int, keep: int) -> None:
    """Compare what ``keep`` checkpoints, and the one being written, need with what the disk has.

    Args:
        folder: the output folder; need not exist. Checkpoints in it count as room, for they make place.
        size: bytes of one checkpoint.
        keep: how many stay.

    Raises:
        ResourceError: too little space.
    """
    there = sum(path.stat().st_size for checkpoint in checkpoints(folder) for path in files_below(checkpoint))
    check_free(folder, max((keep + 1) * size - there, 0), f"{keep + 1} checkpoints")


def check_free(folder: Path, needed: int, what: str) -> None:
    """Refuse, with a ``ResourceError``, a disk with less than ``needed`` bytes free; ``what`` would fill them."""
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise ResourceError(
            f"output_dir: {what}: needs {quantity(needed, 'bytes')}, {quantity(free, 'bytes')} free on {folder.name!r}.\n"
            "Free some space, or set save_total_limit or save_only_model."
        )


def checkpoint_bytes(model: nn.Module, *, adapters: bool, with_optimizer: bool) -> int:
    """Estimated bytes of one checkpoint: the weights (of adapters alone, where that is saved) and Adam's two moments."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = trained if adapters else sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + 2 * trained * with_optimizer


def checkpoints_kept(args: TrainingArguments, *, max_steps: int, save_steps: float) -> int:
    """How many checkpoints a run leaves; 0 where it saves none."""
    if args.save_strategy == SaveStrategy.NO:
        return 0
    written = 1  # the best alone: how many there will be cannot be known
    if args.save_strategy == SaveStrategy.STEPS:
        written = max(int(max_steps // max(save_steps, 1)), 1)
    elif args.save_strategy == SaveStrategy.EPOCH:
        written = max(round(args.num_train_epochs), 1)
    return min(written, args.save_total_limit) if args.save_total_limit else written
