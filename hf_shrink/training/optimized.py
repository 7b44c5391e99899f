"""A Trainer that says which layers learn when, and how fast."""

from collections.abc import Container
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from hf_shrink.config import as_given
from hf_shrink.distillation.stages import stage_at
from hf_shrink.errors import RecipeError
from hf_shrink.training.config import OptimizationConfig
from hf_shrink.training.depths import depths_of, split_by_depth, unfrozen
from hf_shrink.training.freeze import freeze
from hf_shrink.training.outlook import check_optimization, penalised
from hf_shrink.training.schedules import falling
from hf_shrink.training.taught import TaughtTrainer


class OptimizedTrainer(TaughtTrainer):
    """Keeps learning rates and frozen layers in step with the training."""

    optimization = OptimizationConfig()

    def set_optimization(self, config: OptimizationConfig | None) -> None:
        """What the trainings to come do beyond their TrainingArguments.

        Raises:
            RecipeError: something that would be ignored.
        """
        self._staged: list[tuple[nn.Parameter, int]] = []
        self._resting: list[nn.Parameter] = []
        self.optimization = OptimizationConfig() if config is None else as_given(config, OptimizationConfig, "optimization")
        freeze(self.student, self.optimization.freeze, "optimization.freeze")
        if self.optimization.layer_decay is not None and self.optimizer is not None:
            raise RecipeError(
                "optimization.layer_decay: would be ignored, you pass an optimizer; set its groups' rates yourself."
            )
        if self.optimization.schedule is None:
            return
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != "linear" or self.args.lr_scheduler_kwargs:
            raise RecipeError("optimization.schedule: there is another schedule of the learning rate beside it; remove one.")

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in ``Trainer``; what is frozen is so in a new model too."""
        model: nn.Module = super().call_model_init(trial)
        freeze(model, self.optimization.freeze, "optimization.freeze")
        return model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; at the end every weight that may learn is so again."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for parameter, _ in self._staged:
                parameter.requires_grad_(True)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in ``Trainer``; with ``layer_decay`` each depth has a learning rate of its own."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(model)
        decay, where = self.optimization.layer_decay, "optimization.layer_decay"
        if decay is not None and made_here:
            depths = depths_of(self.student, where)
            learning = {id(p): depths[name] for name, p in self.student.named_parameters() if p.requires_grad}
            split_by_depth(optimizer, learning, decay, where)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As in ``Trainer``, or in steps."""
        if self.optimization.schedule is None or self.lr_scheduler is not None:
            made: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return made
        warmup = self.args.get_warmup_steps(num_training_steps)
        rate = partial(falling, config=self.optimization.schedule, warmup=warmup)
        chosen = optimizer or self.optimizer
        assert chosen is not None, "made before its schedule"
        self.lr_scheduler = LambdaLR(chosen, rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def with_penalty(self, loss: Tensor) -> Tensor:
        """The loss of a micro-batch and its part of the penalties, those of pruning too."""
        loss, penalty = super().with_penalty(loss), self.optimization.penalty
        if penalty is None:
            return loss
        learning = [p.float() for p in penalised(self.student)]
        if not learning:  # of this step: what else unfreezing lets learn comes later
            return loss
        terms = [p.abs().sum() if penalty.kind == "l1" else p.square().sum() / 2 for p in learning]
        return loss + penalty.weight * torch.stack(terms).sum() / self.current_gradient_accumulation_steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As in ``Trainer``; an optimizer step begins here, and with it who learns in it."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._staged:
            self._let_learn(self._learning(self.state.global_step))
        return found

    def mixed(self, task_loss: Tensor, *rest: Any) -> Tensor:
        """As in ``TaughtTrainer``; several processes wait for a gradient of every weight, so each gets one, of zero."""
        loss = super().mixed(task_loss, *rest)
        assert self.distiller is not None
        return loss + 0.0 * task_loss if self.args.world_size > 1 and self.distiller.stage is not None else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in ``Trainer``; with several processes, whose gradients are averaged for every weight, the resting lose theirs."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        for parameter in self._resting:
            parameter.grad = None
        return loss

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        stages = () if self.distiller is None else self.distiller.stages
        check_optimization(self.optimization, stages, self.student, self.pruning, max_steps)
        self._staged, self._resting = [], []
        if stages or self.optimization.unfreeze_every is not None:
            depths = depths_of(self.student, "distillation.progressive" if stages else "optimization.unfreeze_every")
            self._staged = [(p, depths[name]) for name, p in self.student.named_parameters() if p.requires_grad]
            self._top = max(depths.values())
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _learning(self, step: int) -> range:
        """The depths that learn after ``step`` optimizer steps."""
        if self.optimization.unfreeze_every is not None:
            return unfrozen(step, every=self.optimization.unfreeze_every, layers=self._top - 1)
        stage = stage_at(self.distiller.stages, step) if self.distiller is not None else None
        return range(self._top + 1) if stage is None else stage.depths

    def _let_learn(self, depths: Container[int]) -> None:
        """Let the weights of these depths learn in this step, and the others rest: no gradient, no decay, no momentum."""
        if self.args.world_size > 1:
            self._resting = [parameter for parameter, depth in self._staged if depth not in depths]
            return
        for parameter, depth in self._staged:
            parameter.requires_grad_(depth in depths)
