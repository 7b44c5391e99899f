"""A Trainer whose checkpoints survive a kill and whose resume never takes a damaged one."""

import logging
import os
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME

from hf_shrink.errors import ResourceError, ShrinkError
from hf_shrink.training.publishing import PublishingTrainer
from hf_shrink.training.space import check_space, checkpoint_bytes, checkpoints_kept
from hf_shrink.training.store import STAGING, check_whole, commit, newest_to_resume, newest_whole, rotate, tidy

logger = logging.getLogger(__name__)


class DurableTrainer(PublishingTrainer):
    """Lets ``Trainer`` write its checkpoint into a staging folder, then commits it."""

    _is_staging = False

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As ``Trainer.train``; ``resume_from_checkpoint=True`` takes the newest checkpoint that is whole.

        Raises:
            IntegrityError: a checkpoint asked for is torn, or all are.
            RecipeError: there is none to resume from.
            ResourceError: too little disk for the checkpoints.
        """
        folder = Path(self._get_output_dir(trial))
        checkpoint = self._on_one_rank(lambda: self._choose_checkpoint(folder, resume_from_checkpoint))
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    @property
    def student(self) -> Any:
        """The model being trained, without what data parallel training or a compiler wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def last_checkpoint(self) -> str:
        """The newest whole checkpoint in words, for an error message."""
        path, _ = newest_whole(Path(self._get_output_dir(getattr(self, "_trial", None))))
        return f"The last good checkpoint is {path.name}." if path else "No checkpoint was saved yet."

    def _choose_checkpoint(self, folder: Path, asked: str | bool | None) -> str | None:
        tidy(folder)
        if asked is None or asked is False:
            return None
        if asked is not True:
            check_whole(Path(asked))
            return str(asked)
        path, faults = newest_to_resume(folder)
        for fault in faults:
            logger.warning("%s; resuming from %s.", fault, path.name)
        return str(path)

    def _on_one_rank(self, choose: Any) -> str | None:
        """What ``choose()`` gives on the first rank, on every rank; its error, too."""
        result: list[Any] = [None]
        if self.args.process_index == 0:
            try:
                result = [choose()]
            except ShrinkError as error:
                result = [error]
        if self.args.world_size > 1:
            broadcast_object_list(result)
        chosen: str | ShrinkError | None = result[0]
        if isinstance(chosen, ShrinkError):
            raise chosen
        return chosen

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        keep = checkpoints_kept(self.args, max_steps=max_steps, save_steps=self.state.save_steps or 1)
        if keep:
            adapters, with_optimizer = hasattr(self.student, "peft_config"), not self.args.save_only_model
            size = checkpoint_bytes(self.student, adapters=adapters, with_optimizer=with_optimizer)
            check_space(Path(self._get_output_dir(getattr(self, "_trial", None))), size=size, keep=keep)
        prepared: Any = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[no-untyped-call]
        return prepared  # type: ignore[no-any-return]

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._is_staging else folder  # noqa: PTH118, the path stays as it was given

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, step = self._get_output_dir(trial), self.state.global_step
        name = f"checkpoint-{step}"
        staged, final = Path(folder, STAGING, name), os.path.join(folder, name)  # noqa: PTH118
        self._is_staging = True
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            self._is_staging = False
            raise ResourceError(f"{name} could not be written: {error.strerror}.\n{self.last_checkpoint()}") from None
        finally:
            self._is_staging = False
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = final
        self.accelerator.wait_for_everyone()  # each rank has written its random state
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            commit(staged, Path(final), step=step, resumable=not self.args.save_only_model)
            best = self.state.best_model_checkpoint
            rotate(Path(folder), keep=self.args.save_total_limit, protected=[Path(final), *([Path(best)] if best else [])])
        self.accelerator.wait_for_everyone()
