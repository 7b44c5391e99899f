"""``ShrinkTrainer``: the stock Trainer with a teacher, a pruner and gradient accumulation that adds up."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed

from hf_shrink.distillation.config import DistillationConfig
from hf_shrink.distillation.positions import is_about_spans
from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.quantization.bitsandbytes import settle
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.repacking import refuse_repacked
from hf_shrink.training.accounting import answers_in, can_count, honours_count, labels_kept
from hf_shrink.training.callbacks import EpochCallback
from hf_shrink.training.config import OptimizationConfig
from hf_shrink.training.rounded import RoundedTrainer
from hf_shrink.training.teachers import AnyTeacher


class ShrinkTrainer(RoundedTrainer):
    """A ``transformers.Trainer`` that distils, prunes and rounds. With none it is the stock one, at one accumulation step.

    The training loss is ``(1 - alpha) * task + alpha * (sum of weight * term)``; evaluation keeps the plain task loss. The
    gradient of an optimizer step does not depend on how many micro-batches it is cut into.

    Args:
        model, args, ...: those of ``Trainer``, in its order.
        teacher: a model of the same labels and vocabulary, a ``Teacher``, a list of them (their mean teaches) or an
            ``Ensemble``, or a ``CachedTeacher``; needs ``distillation``. One in float32 shares ``bf16`` or ``fp16`` with it.
        distillation: alpha and losses; needs ``teacher``.
        pruning: one entry or several; masks follow the optimizer steps and are part of each checkpoint.
        pruning_fractions: what each mask of an entry with ``allocation: sensitivity`` loses, by the mask's name.
        optimization: which weights learn when and how fast, beyond what ``args`` say.
        quantization: quantisation-aware training: layers multiply by their weights as they will be stored, in training and
            evaluation, while the float weights learn; ``quantize(model, quantization)`` then stores just those, or
            ``export_onnx`` for ``backend="onnx"``, with embeddings. Or by layer, ``{name: QuantizationConfig}``.
        peft_config: wraps the model in adapters first.

    Raises:
        RecipeError: arguments that would be ignored or cannot go together.
        IntegrityError: 4-bit weights that bitsandbytes has repacked for this CPU.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        *,
        teacher: AnyTeacher | None = None,
        distillation: DistillationConfig | None = None,
        pruning: PruningConfig | Sequence[PruningConfig] | None = None,
        pruning_fractions: Mapping[str, float] | None = None,
        optimization: OptimizationConfig | None = None,
        quantization: QuantizationConfig | Mapping[str, QuantizationConfig] | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        self._peft_config = peft_config
        if model is not None and peft_config is not None:
            set_seed(42 if args is None else args.seed)
            model = _with_adapters(model, peft_config)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            model_init,
            compute_loss_func,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
        )
        if hasattr(self.data_collator, "set_epoch"):
            self.add_callback(EpochCallback(self.data_collator))
        _settle(self.model)
        self.set_pruning(pruning, pruning_fractions)
        self.set_distillation(teacher, distillation)
        self.set_optimization(optimization)
        self.set_quantization(quantization)
        self._refuse_what_cannot_be_right()
        self.current_gradient_accumulation_steps = 1
        self._honours_count: bool | None = None

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The stock loss, or the mix with distillation; micro-batches add up to the loss of the whole optimizer step."""
        batch, inputs = dict(inputs), self._for_student(inputs)
        partial = self._is_partial(model)
        if model.training and not return_outputs and self.streams(batch):
            self.loss_is_scaled_for_ga = True if partial else None
            return self.with_penalty(self.streamed(model, batch, num_items_in_batch))
        honoured = not partial or (num_items_in_batch is not None and self._is_count_honoured(inputs))
        self.loss_is_scaled_for_ga = True if partial else None
        with self.watching(model) as attended, self.showing(inputs):
            words = inputs | self.asked(model)
            loss, outputs = super().compute_loss(model, words, True, num_items_in_batch if honoured else None)
        if model.training:
            if not honoured:
                loss = self._share(loss, batch, num_items_in_batch)
            elif can_count(batch):  # without one label the mean is none: such a batch counts as nothing
                kept = labels_kept(batch, shifts_labels=self._loss_shifts_labels).to(loss.device)
                loss = torch.where(kept > 0, loss, 0.0)
            if self.distiller is not None:
                loss = self.mixed(loss, outputs, batch, attended)
            loss = self.with_penalty(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in ``Trainer``, but a loss that is no number stops the training before the weights change."""
        self.micro_batch += 1
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise self.not_finite(f"the loss is {loss.item()}.\nLower the learning rate or look at the batch.")
        return loss

    def _is_partial(self, model: nn.Module) -> bool:
        """Whether this batch is only a part of what the optimizer, or the evaluation, averages over."""
        if self.args.n_gpu > 1:
            return False
        return self.args.world_size > 1 or (model.training and self.current_gradient_accumulation_steps > 1)

    def _is_count_honoured(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the loss divides by the count of labels: a part of a step then needs nothing more.

        Label smoothing does, a ``compute_loss_func`` has promised to, and a model is asked once.
        """
        if self.compute_loss_func is not None or (self.label_smoother is not None and "labels" in inputs):
            return True
        if self._honours_count is None and labels_kept(inputs, shifts_labels=self.predicts_next_token()):
            self._honours_count = honours_count(self.student, inputs)
        return bool(self._honours_count)

    def _share(self, mean: Tensor, batch: Mapping[str, Any], count: Tensor | int | None) -> Tensor:
        """From the mean over a micro-batch to its part of the mean over the optimizer step."""
        if count is None:
            return mean / self.current_gradient_accumulation_steps
        kept = labels_kept(batch, shifts_labels=self._loss_shifts_labels).to(mean.device)
        ranks = self.args.world_size if self.args.average_tokens_across_devices else 1
        return torch.where(kept > 0, mean * (kept / count * ranks), 0.0)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """As in ``Trainer``; the parts of a step of questions about texts are counted too."""
        parts = len(batch_samples) > 1 or self.args.world_size > 1
        if parts and is_about_spans(batch_samples[0]):
            batch_samples = [{"labels": answers_in(batch)} for batch in batch_samples]
        found: Tensor | int | None = super()._get_num_items_in_batch(batch_samples, device)
        return found

    # ---- numbers that are none ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not torch.isfinite(torch.as_tensor(norm)) and not self._scaler_will_skip():
            raise self.not_finite(f"the gradient norm is {float(norm)}.\nLower the learning rate or look at the batch.")
        return norm

    def _scaler_will_skip(self) -> bool:
        """In float16 an overflow is the scaler's way to find its scale, until the scale is too small to blame."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= 1

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        self._honours_count = None
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    # ---- arguments ----

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in ``Trainer``; a new model gets adapters too."""
        model: nn.Module = super().call_model_init(trial)
        if self._peft_config is not None:
            model = _with_adapters(model, self._peft_config)
        _settle(model)
        return model

    def _refuse_what_cannot_be_right(self) -> None:
        given = (("distillation", self.distiller), ("pruning", self.pruning), ("quantization", self.roundings))
        ours = " and ".join(name for name, on in given if on)
        if getattr(self.args, "predict_with_generate", False):
            raise RecipeError(
                "predict_with_generate: would be ignored, evaluation here gives compute_metrics the logits.\nLeave it out, and "
                "after the training pass trainer.model to a Seq2SeqTrainer for evaluate(), or to hf_shrink.measure."
            )
        if ours and self.args.n_gpu > 1:
            raise RecipeError(
                f"{ours}: {self.args.n_gpu} GPUs in one process are not supported. Launch one process a GPU with torchrun."
            )
        if ours and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RecipeError(f"{ours}: sharded training (FSDP, DeepSpeed) is not supported. Use plain data parallel training.")


def _settle(model: Any) -> None:
    refuse_repacked(model, f"ShrinkTrainer: {type(model).__name__}")
    settle(model)


def _with_adapters(model: Any, config: PeftConfig) -> nn.Module:
    if hasattr(model, "peft_config"):
        raise RecipeError("peft_config: the model has adapters already; pass the model alone.")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted
