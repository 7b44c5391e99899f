"""From the ``training`` section to TrainingArguments, and the number of optimizer steps they lead to."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.utils.import_utils import is_liger_kernel_available

from hf_shrink.errors import RecipeError
from hf_shrink.lines import first_line
from hf_shrink.training_words import trackers


def training_arguments(words: Mapping[str, Any], *, output_dir: Path, seed: int, where: str) -> TrainingArguments:
    """The recipe's words as TrainingArguments; bars are shown only where stderr is a terminal.

    Raises:
        RecipeError: transformers refuses a word or a value; ``where`` names the section.
    """
    try:
        found = TrainingArguments(
            **{
                "disable_tqdm": not sys.stderr.isatty(),
                "dataloader_pin_memory": torch.accelerator.is_available(),  # elsewhere it only warns
                "seed": seed,
                **words,
                "output_dir": str(output_dir),
            }
        )
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"{where}: {first_line(error)}") from None
    if found.use_liger_kernel and not is_liger_kernel_available():
        raise RecipeError(f"{where}.use_liger_kernel: needs the package liger-kernel; install it, or remove the word.")
    found.report_to = list(trackers(words))  # transformers adds one where it finds itself on Kubeflow
    return found


def check_optimizer(arguments: TrainingArguments, steps: int, where: str) -> None:
    """Make the optimizer and the schedule of a training over one number, and throw them away.

    Optimizers that ask for the model itself (galore, apollo, lomo) are passed over.

    Raises:
        RecipeError: one of them refuses its words; ``where`` names the section.
    """
    try:
        if arguments.optim.startswith(("galore", "apollo", "lomo", "adalomo")):
            return
        more: Any = arguments.lr_scheduler_kwargs  # a string has become a mapping
        kind, words = Trainer.get_optimizer_cls_and_kwargs(arguments)
        get_scheduler(
            arguments.lr_scheduler_type,
            kind([torch.nn.Parameter(torch.zeros(1))], **words),
            arguments.get_warmup_steps(steps),
            steps,
            more,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"{where}: {first_line(error)}") from None


def optimizer_steps(arguments: TrainingArguments, rows: int) -> int:
    """Optimizer steps of a whole training on ``rows`` examples, over all processes."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batch = arguments.train_batch_size * arguments.world_size
    batches: int = rows // batch if arguments.dataloader_drop_last else math.ceil(rows / batch)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(float(arguments.num_train_epochs) * per_epoch)
