"""A Trainer with masks: they follow its steps, live in its checkpoints, and become a smaller model at the end."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.files import write_text
from hf_shrink.loading.oneshot import recorded
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.entries import named, seeded
from hf_shrink.pruning.moments import carried
from hf_shrink.pruning.penalty import penalty
from hf_shrink.pruning.pruner import Pruner, check_during
from hf_shrink.pruning.surgery import shrink
from hf_shrink.training.callbacks import PruningCallback
from hf_shrink.training.durable import DurableTrainer

MASKS_NAME = "pruning_masks.safetensors"
STATISTICS_NAME = "pruning_statistics.safetensors"
RECORD_NAME = "pruning.json"

logger = logging.getLogger(__name__)


class PruningTrainer(DurableTrainer):
    """Keeps a ``Pruner`` in step with the training."""

    pruning: tuple[PruningConfig, ...] = ()
    pruner: Pruner | None = None

    def set_pruning(
        self, pruning: PruningConfig | Sequence[PruningConfig] | None, fractions: Mapping[str, float] | None
    ) -> None:
        """What to prune in the trainings to come.

        Raises:
            RecipeError: something that a training cannot do.
        """
        self.pruning = () if pruning is None else seeded(as_tuple(pruning), self.args.seed)
        self._fractions = fractions
        self._hooks, self._watched = ExitStack(), False
        check_during(self.pruning)
        for place, entry in named(self.pruning):
            if entry.allocation == "sensitivity" and not fractions:
                raise RecipeError(f"{place}.allocation: sensitivity needs pruning_fractions=, one for each mask.")
        if fractions and not any(entry.allocation == "sensitivity" for entry in self.pruning):
            raise RecipeError("pruning_fractions would be ignored: no entry has allocation: sensitivity; remove it.")
        if self.pruning and carries_adapter(self.student):
            raise RecipeError(
                "pruning: a model with adapters cannot be pruned while it trains. Merge the adapters, or leave one out."
            )

    def shrink(self) -> PreTrainedModel:
        """A physically smaller copy of the trained model: masked neurons are gone, masked weights are zero.

        Its own ``save_pretrained`` makes a folder that loads again, after ``import hf_shrink`` where layers differ in width.

        Raises:
            RecipeError: there is no pruning, or training has not begun.
        """
        if self.pruner is None:
            raise RecipeError("shrink: there are no masks; pass pruning= to ShrinkTrainer and call train() first.")
        if not self.pruner.final(self.state.global_step):
            logger.warning(
                "shrink: the schedule has not ended at step %s: removed are %s, and widths may be odd ones.\n"
                "Train to the last step, or set end_step at or before the step at which you stop.",
                self.state.global_step,
                ", ".join(f"{entry} {fraction:.1%}" for entry, fraction in self.pruner.sparsity().items()),
            )
        watched = self._watched
        self._hooks.close()  # a copy of a watched model would go on recording
        small = shrink(self.student, self.pruner.masks())
        if watched:
            self._watch()
        return recorded(small)

    def carried_optimizer(self, small: PreTrainedModel) -> torch.optim.Optimizer:
        """The optimizer of this training for ``small``, which ``shrink()`` gave: same settings, moments cut like the weights.

        Raises:
            RecipeError: there is no pruning, or training has not begun.
            MismatchError: an optimizer whose state is not one number a weight.
        """
        if self.pruner is None or self.optimizer is None:
            raise RecipeError("carried_optimizer: nothing has been trained with masks; call train() first.")
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return carried(optimizer, self.student, small, self.pruner.masks())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; ``resume_from_checkpoint=True`` takes the newest checkpoint that is whole."""
        with self._hooks:
            return super().train(*args, **kwargs)

    def showing(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Around a forward of the student: statistics read here what is kept from it of the batch, as labels to smooth."""
        recorder = None if self.pruner is None else self.pruner.recorder
        return nullcontext() if recorder is None else recorder.showing(batch)

    def with_penalty(self, loss: Tensor) -> Tensor:
        """The loss of a micro-batch and its part of the penalties."""
        if all(entry.penalty is None for entry in self.pruning):
            return loss
        assert self.pruner is not None, "made before the first step"
        return loss + penalty(self.pruner.groups) / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in ``Trainer``; beside ``loss`` stands the sparsity of each entry, as ``sparsity/pruning.0``."""
        if self.pruner is not None and "loss" in logs:
            logs |= {f"sparsity/{entry}": fraction for entry, fraction in self.pruner.sparsity().items()}
        super().log(logs, start_time)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        if self.pruning:
            self._hooks.close()
            self.remove_callback(PruningCallback)
            self.pruner = Pruner(self.student, self.pruning, max_steps, self._fractions)
            self._watch()
            self.callback_handler.callbacks.insert(
                0, PruningCallback(self.pruner, lambda: getattr(self.accelerator, "scaler", None))
            )
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _watch(self) -> None:
        """Let the recorder see what the student does, until the hooks are closed."""
        if self.pruner is not None and self.pruner.recorder is not None:
            self._hooks.enter_context(self.pruner.recorder.watching(self.student, training_only=True))
            self._hooks.callback(setattr, self, "_watched", False)
            self._watched = True

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Before the final sparsity a model is better because it is denser: it cannot be the best."""
        if self.pruner is not None and not self.pruner.final(self.state.global_step):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.pruner is None:
            return
        statistics = {} if self.pruner.recorder is None else self.pruner.recorder.state_dict()
        if self.args.should_save:
            save_file(self.pruner.state_dict(), Path(output_dir, MASKS_NAME))
            write_text(Path(output_dir, RECORD_NAME), json.dumps(self._pruning_record(), indent=1) + "\n")
            if self.pruner.recorder is not None:
                save_file(statistics, Path(output_dir, STATISTICS_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, MASKS_NAME)
        if path.exists() != (self.pruner is not None):
            has, this = ("holds", "has no pruning") if path.exists() else ("holds no", "prunes")
            raise MismatchError(
                f"{path.parent.name} {has} pruning masks, but this run {this}. Resume with the settings it began with."
            )
        if self.pruner is not None:
            self._refuse_other_settings(path.with_name(RECORD_NAME))
            self.pruner.load_state_dict(load_file(path))
            if self.pruner.recorder is not None:
                self.pruner.recorder.load_state_dict(load_file(path.with_name(STATISTICS_NAME)))

    def _pruning_record(self) -> dict[str, Any]:
        """What the masks of a checkpoint follow: a run that goes on has to follow the same."""
        entries = [entry.model_dump(mode="json", exclude_defaults=True) for entry in self.pruning]
        return {"pruning": entries, "fractions": dict(self._fractions or {})}

    def _refuse_other_settings(self, path: Path) -> None:
        """Masks only ever grow: under other settings they would end neither here nor there."""
        if not path.exists():
            logger.warning("%s is from before %s: its pruning settings are not compared.", path.parent.name, path.name)
            return
        before, now = json.loads(path.read_text(encoding="utf-8")), self._pruning_record()
        if before != now:
            odd = next(key for key in now if before.get(key) != now[key])
            raise MismatchError(
                f"{path.parent.name} was pruned with {odd} {json.dumps(before.get(odd)):.300}, this run asks for "
                f"{json.dumps(now[odd]):.300}.\nResume with the settings it began with, or start again in another output_dir."
            )
