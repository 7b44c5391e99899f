"""The ``optimization`` and ``recovery`` sections."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hf_shrink.config import Config, Listed, Names
from hf_shrink.distillation.config import DistillationConfig, LossTerm


class StepDecay(Config):
    """The learning rate falls in steps, in place of `lr_scheduler_type`; the warm-up of `warmup_steps` comes before."""

    every: int | None = Field(None, ge=1, description="Optimizer steps from one fall to the next.")
    at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Listed] = Field(
        (), description="Or the optimizer steps of the falls, in order."
    )
    factor: float = Field(0.1, gt=0, lt=1, description="What the learning rate is multiplied by at each fall.")

    @model_validator(mode="after")
    def _falls_somewhere(self) -> Self:
        if (self.every is None) == (not self.at):
            raise ValueError("give either `every`, or the steps in `at`; one of the two says when the rate falls.")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at: steps must rise and differ, got {list(self.at)}; put them in order.")
        return self


class WeightPenalty(Config):
    """A term of the training loss over all trained weights but biases and norms."""

    kind: Literal["l1", "l2"] = Field(
        description="l1: sum of absolute weights. l2: half the sum of squared weights; unlike `weight_decay` it goes through "
        "the optimizer (arXiv:1711.05101)."
    )
    weight: float = Field(gt=0, description="Factor of the term in the loss.")


class OptimizationConfig(Config):
    """Beside `training`, for the student."""

    freeze: Names = Field((), description="Modules not trained, by the end of their name, e.g. [embeddings].")
    layer_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Learning rates fall by this factor with each layer from the top: the head has the whole rate, the last "
        "layer this part of it, the embeddings the least (arXiv:1801.06146).",
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="Gradual unfreezing: at first only what stands above the layers learns; every so many optimizer steps one "
        "layer more does, from the top, the embeddings last (arXiv:1801.06146).",
    )
    schedule: StepDecay | None = Field(None, description="Step or multi-step schedule of the learning rate.")
    penalty: WeightPenalty | None = None


class RecoveryConfig(Config):
    """What quantising took, given back: by adapters (LoRA) on every quantised layer, or by quantisation-aware training."""

    method: Literal["adapters", "qat"] = Field(
        "adapters",
        description="adapters: beside the quantised weights, trained or not. qat: the float student is trained with its "
        "weights rounded as they will be stored (straight-through estimator), then quantised; no bytes more. Where "
        "`quantization` is onnx alone: embeddings too, as the graph stores them, which is made of the trained float model.",
    )
    rank: int = Field(32, ge=1, description="adapters: (in + out) * rank numbers a layer.")
    start: Literal["inputs", "weights", "none"] = Field(
        "inputs",
        description="adapters: they start as the best of their rank for the layers' outputs on the calibration rows, or for "
        "the weights alone; none: as if they were not there.",
    )
    calibration_rows: int = Field(
        128, ge=1, le=512, description="Training rows that `start: inputs` reads; as many others show what came back."
    )
    training: dict[str, Any] | None = Field(
        None,
        description="Words of TrainingArguments. adapters: to train them with; null leaves them as they start. qat: needed.",
    )
    distillation: DistillationConfig | None = Field(
        None,
        description="How training learns from the float student, as in `distillation`; null: forward_kl alone.",
    )
    keep: Literal["adapter", "merge"] = Field(
        "adapter",
        description="adapters: `adapter` leaves them in `adapter/`, beside the quantised model; `merge` adds them to the "
        "weights, which are quantised again, and is refused where the answers come no closer to the float student's.",
    )

    @model_validator(mode="after")
    def _is_not_in_vain(self) -> Self:
        if self.method == "qat" and (ignored := sorted(self.model_fields_set & {"rank", "start", "keep"})):
            raise ValueError(f"{', '.join(ignored)} would be ignored with method: qat, which has no adapters; remove it.")
        if self.method == "qat" and self.training is None:
            raise ValueError("method: qat is a training; add training, such as training: {max_steps: 100}.")
        if self.training is None and self.distillation is not None:
            raise ValueError("distillation would be ignored without training; add training, or remove it.")
        if self.training is None and self.start == "none":
            raise ValueError("start: none without training gives nothing back; add training, or use start: inputs.")
        return self

    @property
    def leaves_adapter(self) -> bool:
        """Whether an adapter lies beside the quantised model in the end."""
        return self.method == "adapters" and self.keep == "adapter"

    def learns(self) -> DistillationConfig:
        """The loss of the training."""
        return self.distillation or DistillationConfig(alpha=1.0, losses=(LossTerm(loss="forward_kl"),))
