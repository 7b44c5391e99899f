"""What follows the step counter."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_shrink.pruning.pruner import Pruner
from hf_shrink.targets import projections


class EpochCallback(TrainerCallback):
    """Tells a collator that draws something which epoch begins, so that a resumed run draws what the whole one did.

    Args:
        collator: with ``set_epoch(epoch, seed)``.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before the first batch of the epoch is made; a run may go on in the middle of one."""
        self.collator.set_epoch(int(state.epoch or 0), args.seed)


class PruningCallback(TrainerCallback):
    """Keeps the masks of a ``Pruner`` in step: after ``n`` optimizer steps they are those of the schedule at ``n``.

    It comes before every other callback, so that evaluation, logging and saving see the pruned weights.
    """

    def __init__(self, pruner: Pruner, scaler: Callable[[], Any] = lambda: None) -> None:
        """Follow a training.

        Args:
            pruner: whose masks are kept in step.
            scaler: gives the loss scaler of float16 training, where there is one.
        """
        self.pruner = pruner
        self.scaler = scaler

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """At step 0 the schedule may already ask for something; a resumed run has its masks from the checkpoint."""
        if state.global_step == 0:
            self.pruner.update(0)
            self.pruner.apply()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After clipping: a removed weight gets no gradient, so no momentum pulls at it."""
        if self.pruner.recorder is not None:
            scaler = self.scaler()
            scaled = scaler is not None and scaler.is_enabled()
            self.pruner.recorder.observe_gradients(loss_scale=scaler.get_scale() if scaled else 1.0, skip_overflow=scaled)
        self.pruner.mask_gradients()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """The counter has not moved yet: this was step ``global_step + 1``."""
        self.pruner.update(state.global_step + 1)
        self.pruner.apply(getattr(optimizer, "optimizer", optimizer))


class HeldZeros(TrainerCallback):
    """Keeps every weight of a projection that is zero now at zero, whatever the optimizer does.

    Args:
        model: as it begins to train, before a checkpoint is loaded.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = {id(layer.weight): layer.weight for layer in projections(model).values()}.values()
        self._kept = [(weight, weight.detach() != 0) for weight in weights if bool((weight == 0).any())]

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After clipping: no gradient, so no momentum."""
        for weight, kept in self._kept:
            if weight.grad is not None:
                weight.grad.mul_(kept.to(weight.device))

    @torch.no_grad()
    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Optimizers that mix the weights of a matrix move zeros, too."""
        for weight, kept in self._kept:
            weight.mul_(kept.to(weight.device))
