"""A Trainer whose model multiplies by weights as they will be stored: quantisation-aware training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.files import write_text
from hf_shrink.pruning.entries import named
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.roundings import Roundings, roundings_of
from hf_shrink.quantization.straight_through import weights_as_stored
from hf_shrink.training.optimized import OptimizedTrainer

ROUNDINGS_NAME = "quantization_aware.json"


class RoundedTrainer(OptimizedTrainer):
    """Rounds weights in every forward pass of training and evaluation. What it keeps and saves are the float weights."""

    roundings: Mapping[str, QuantizationConfig] = {}

    def set_quantization(self, quantization: QuantizationConfig | Roundings | None) -> None:
        """How the model of the trainings to come will be stored.

        Raises:
            RecipeError, MismatchError: as ``roundings_of``; adapters, a compiler, or units that leave the model later.
        """
        self._quantization, self.roundings = quantization, {}
        self._of_step: dict[str, Tensor] = {}
        self._of_evaluation: dict[str, Tensor] | None = None
        if quantization is None:
            return
        if hasattr(self.student, "peft_config"):
            raise RecipeError("quantization: trains the weights themselves, and a model with adapters leaves them; use one.")
        refuse_compiler(self.args, "torch_compile")
        for place, entry in named(self.pruning):
            if entry.makes_smaller:
                raise RecipeError(
                    f"{place}: {entry.structure} leave the model after it was trained, and what is left would be "
                    "rounded otherwise.\nPrune first, shrink(), then train with quantization."
                )
        self.roundings = roundings_of(self.student, quantization)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in ``Trainer``, with rounded weights; backward too, which may run layers again."""
        known = self._of_step if self.current_gradient_accumulation_steps > 1 else {}
        with weights_as_stored(self.student, self.roundings, known):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in ``Trainer``; no weight changes meanwhile, so each is rounded once."""
        self._of_evaluation = {}
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._of_evaluation = None

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As in ``Trainer``, with rounded weights: what is judged is what will be stored."""
        with weights_as_stored(self.student, self.roundings, self._of_evaluation):
            return super().prediction_step(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As in ``Trainer``; an optimizer step begins. What the student says itself, it says with rounded weights."""
        self._of_step = {}
        with weights_as_stored(self.student, self.roundings, self._of_step):
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        self.set_quantization(self._quantization)  # of a model that `model_init` has made since
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.roundings and self.args.should_save:
            write_text(Path(output_dir, ROUNDINGS_NAME), json.dumps(self._record(), indent=1) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, ROUNDINGS_NAME)
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if before != self._record():
            raise MismatchError(
                f"{path.parent.name} rounds {len(before)} layers, this run {len(self.roundings)}, or otherwise. "
                "Resume with the settings it began with."
            )

    def _record(self) -> dict[str, Any]:
        return {name: config.model_dump(mode="json") for name, config in self.roundings.items()}


def refuse_compiler(args: Any, where: str) -> None:
    """A RecipeError where ``args`` ask for a compiler: it would have to see into the rounding, or keep what it saw once."""
    if args.torch_compile:
        raise RecipeError(f"{where}: not with weights rounded as they are stored; remove it.")
