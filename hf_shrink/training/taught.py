"""A Trainer with a teacher: whom it asks, over which positions it averages, and what of it is logged."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_shrink.columns import TEACHER_IDS
from hf_shrink.distillation.autocast import AUTOCAST
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import DistillationConfig
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.heads import plain_head
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.positions import SAMPLED
from hf_shrink.distillation.streaming import Heads
from hf_shrink.distillation.vocabularies import shared_words
from hf_shrink.distillation.watching import NOT_REENTRANT, Attended
from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.training.accounting import labels_kept, predicts_next_token
from hf_shrink.training.sampled import SamplingTrainer
from hf_shrink.training.teachers import AnyTeacher, as_one, inside, models_of, warn_of_smaller

PROJECTIONS_NAME = "distillation_projections.safetensors"

logger = logging.getLogger(__name__)


class TaughtTrainer(SamplingTrainer):
    """Keeps a ``Distiller`` in step with the training."""

    distiller: Distiller | None = None
    micro_batch = 0

    def set_distillation(self, teacher: AnyTeacher | None, config: DistillationConfig | None) -> None:
        """Whom to learn from, and how, in the trainings to come.

        Raises:
            RecipeError: one without the other, a teacher that shares weights with the student, or checkpoints through which
                losses on attention do not reach it.
        """
        self._step_positions: Tensor | None = None
        self._terms_read_at = 0
        self._heads: Heads | None = None
        self._heads_known = False
        if (teacher is None) != (config is None):
            given, missing = ("distillation", "teacher") if teacher is None else ("teacher", "distillation")
            raise RecipeError(f"{given} without {missing} would be ignored. Pass both or neither.")
        if teacher is None or config is None:
            return
        ours = {id(p) for p in self.student.parameters()}
        if any(id(p) in ours for model in models_of(teacher) for p in model.parameters()):
            raise RecipeError("teacher: shares weights with the student, which it would freeze. Pass a copy.")
        one = as_one(teacher, config, inside(self.student)).under(AUTOCAST.get(self.accelerator.mixed_precision))
        one.to(self.args.device)
        if not self.pruning:
            warn_of_smaller(one, inside(self.student))
        self.set_on_policy(config.on_policy, is_causal=self.predicts_next_token(), is_live=not isinstance(one, CachedTeacher))
        on_layers = any(as_loss(term.loss).reads != "logits" for term in config.losses)
        if on_layers and self.model_init is not None:
            raise RecipeError("distillation: losses on layers belong to one model; pass model= instead of model_init=.")
        if isinstance(one, CachedTeacher):
            words = one.words_of(inside(self.student))
        else:
            words = None if config.crosses else self._shared_words(one.models)
        one = one.over(words) if isinstance(one, Ensemble) else one
        self.distiller = Distiller(
            config,
            one,
            student=self.student,
            shifts_labels=self.predicts_next_token(),
            words=words,
            seed=self.args.seed,
        )
        if self.distiller.layers is not None:
            self.distiller.layers.projections.to(self.args.device)
            again: Any = self.args.activation_checkpointing and self.args.activation_checkpointing_kwargs
            if self.distiller.layers.reads_attention and again and again.get("use_reentrant"):
                raise RecipeError(
                    "distillation: losses on attention would teach nothing under reentrant gradient checkpointing, which runs "
                    f"the student's layers without a gradient.\n{NOT_REENTRANT}"
                )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; then attention is what it was, and a loss asked for by hand is of a whole step again."""
        layers = None if self.distiller is None else self.distiller.layers
        try:
            with layers.learning() if layers is not None else nullcontext():
                return super().train(*args, **kwargs)
        finally:
            self._step_positions, self.current_gradient_accumulation_steps = None, 1

    def predicts_next_token(self) -> bool:
        """Whether the student's logits at a position are about the token after it."""
        return predicts_next_token(inside(self.student))

    def mixed(self, task_loss: Tensor, outputs: Any, batch: Mapping[str, Any], attended: Mapping[int, Attended]) -> Tensor:
        """The training loss of a micro-batch from its task loss, the student's outputs and what its attention did."""
        assert self.distiller is not None
        try:
            return self.distiller.mix(task_loss, outputs, batch, self._step_positions, attended)
        except NonFiniteError as error:
            raise self.not_finite(self._place(error)) from None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[dict[int, Attended]]:
        """Collect what ``mixed`` needs from a forward of the student in training."""
        if self.distiller is None or not model.training:
            yield {}
        else:
            self.distiller.at(self.state.global_step, self.state.max_steps)
            with self.distiller.watching() as attended:
                yield attended

    def asked(self, model: nn.Module) -> dict[str, Any]:
        """Words to the student's forward in training, for outputs that some loss reads."""
        if self.distiller is None or self.distiller.layers is None or not model.training:
            return {}
        return self.distiller.layers.forward_words

    def streams(self, inputs: Mapping[str, Any]) -> bool:
        """Whether task loss and distillation of this training come without the logits ever being all there.

        That needs causal language models on both sides, plain last products, and losses that read nothing but logits. It is
        told once a training, by the first micro-batch.
        """
        if self.distiller is None or self.label_smoother is not None or self.compute_loss_func is not None:
            return False
        if not self._heads_known:
            self._heads, self._heads_known = self._find_heads(inputs), True
            if self._heads is not None:
                logger.info("Distillation over the vocabulary a few rows at a time: the logits are never all in memory.")
        return self._heads is not None

    def streamed(self, model: nn.Module, inputs: Mapping[str, Any], count: Tensor | int | None) -> Tensor:
        """The training loss of a micro-batch: what ``mixed`` gives, in a fraction of the memory."""
        assert self.distiller is not None and self._heads is not None
        count_of_terms = self._step_positions
        if count_of_terms is None:  # called by hand: the batch is the whole step
            count_of_terms = self.distiller.positions(inputs).sum().clamp(min=1)
        self.distiller.at(self.state.global_step, self.state.max_steps)
        words = {name: value for name, value in self._for_student(inputs).items() if name not in ("labels", "shift_labels")}
        try:
            return self.distiller.stream(
                lambda: model(**words),
                self._heads,
                inputs,
                task_count=self._task_count(inputs, count),
                count=count_of_terms,
            )
        except NonFiniteError as error:
            raise self.not_finite(self._place(error)) from None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As in ``Trainer``; also counts the positions that distillation averages over in this optimizer step."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.micro_batch = 0
        for parameter in self._projection_parameters():
            parameter.grad = None  # ``Trainer`` empties those of the model alone
        if self.distiller is not None and batches:
            positions = torch.stack([self.distiller.positions(batch).sum() for batch in batches]).sum().float().to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                positions = self.accelerator.reduce(positions, reduction="mean")
            self._step_positions = positions.clamp(min=1 / self.args.world_size)
        return batches, count

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in ``Trainer``; columns kept for the teacher alone do not reach the student."""
        return super().prediction_step(model, self._for_student(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in ``Trainer``; beside ``loss`` stands each of its terms, as ``loss/task`` and ``loss/forward_kl``."""
        if self.distiller is not None and "loss" in logs:
            terms = self.distiller.read(self.state.global_step - self._terms_read_at)
            self._terms_read_at = self.state.global_step
            logs |= {name: float(self.accelerator.gather(value).mean()) for name, value in terms.items()}
        super().log(logs, start_time)

    def not_finite(self, what: str) -> NonFiniteError:
        """The error of this step about a number that is none."""
        return NonFiniteError(f"step {self.state.global_step + 1}: {what}\nThe weights are unchanged. {self.last_checkpoint()}")

    def _place(self, error: NonFiniteError) -> str:
        """What an error says of rows, with the micro-batch they are in."""
        parts = self.current_gradient_accumulation_steps
        return f"micro-batch {self.micro_batch} of {parts}: {error}" if parts > 1 else str(error)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in ``Trainer``; projections of the distillation are trained with the student, without weight decay."""
        made_here = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if parameters := self._projection_parameters():
            known = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if id(parameters[0]) in known:
                return optimizer
            if not made_here:
                raise RecipeError(
                    "optimizers: your own would leave the projections between different hidden widths untrained.\n"
                    "Pass optimizer_cls_and_kwargs, or compare layers of equal width."
                )
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in ``Trainer``, of the student alone; projections are averaged over the ranks and clipped by themselves."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if self.distiller is not None and (parameters := self.distiller.projecting):
            for parameter in parameters if self.args.world_size > 1 else ():
                found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(found, reduction="mean")
            if self.args.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        return norm

    def _projection_parameters(self) -> list[nn.Parameter]:
        layers = None if self.distiller is None else self.distiller.layers
        return [] if layers is None else list(layers.projections.parameters())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._projection_parameters():
            assert self.distiller is not None and self.distiller.layers is not None
            save_file(self.distiller.layers.projections.state_dict(), Path(output_dir, PROJECTIONS_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            path = Path(checkpoint, PROJECTIONS_NAME)
            if path.exists() != bool(self._projection_parameters()):
                has, this = ("holds", "learns none") if path.exists() else ("holds no", "learns some")
                raise MismatchError(
                    f"{path.parent.name} {has} projections of a distillation, but this run {this}. "
                    "Resume with the settings it began with."
                )
            if path.exists():
                assert self.distiller is not None and self.distiller.layers is not None
                self.distiller.layers.projections.load_state_dict(load_file(path))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        self._terms_read_at, self._heads_known = self.state.global_step, False
        if self.distiller is not None:
            self.distiller.read(1)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _find_heads(self, inputs: Mapping[str, Any]) -> Heads | None:
        assert self.distiller is not None
        ids = inputs.get("input_ids")
        if not self.distiller.streams or self.args.torch_compile or not isinstance(ids, Tensor):
            return None
        models = self.distiller.teacher.models  # none where the answers are kept
        if not all(predicts_next_token(inside(model)) for model in (self.student, *models)):
            return None
        head = plain_head(self.student, ids, own_loss=True)
        if head is None or not models:
            return None if head is None else Heads(head, None)
        teacher_head = plain_head(models[0], inputs[TEACHER_IDS] if self.distiller.config.crosses else ids, own_loss=False)
        return None if teacher_head is None else Heads(head, teacher_head, self.distiller.teacher.precision)

    def _shared_words(self, teachers: list[Any]) -> int | None:
        """How many words both vocabularies have; None where the logits are no words, or cannot be cut."""
        heads = [getattr(inside(model), "get_output_embeddings", lambda: None)() for model in (self.student, *teachers)]
        sizes = [len(head.weight) for head in heads if head is not None]
        if len(sizes) < len(heads) or len(set(sizes)) == 1:
            return None
        vocabulary: dict[str, int] = getattr(self.processing_class, "get_vocab", dict)()
        tokens = max(vocabulary.values()) + 1 if vocabulary else None
        words = min(shared_words(sizes[0], size, tokens) for size in sizes[1:])
        logger.info("Distillation over %s words: student and teacher have %s, the rest is padding.", words, sizes)
        return words

    def _task_count(self, inputs: Mapping[str, Any], count: Tensor | int | None) -> Tensor | float:
        """What the sum of the task loss over a micro-batch is divided by, so that micro-batches and ranks add up."""
        if count is None:
            return labels_kept(inputs, shifts_labels=True).clamp(min=1) * self.current_gradient_accumulation_steps
        ranks = self.args.world_size if self.args.average_tokens_across_devices else 1
        return torch.as_tensor(count).clamp(min=1) / ranks

    def _for_student(self, inputs: Any) -> Any:
        """The batch without columns that only the teacher's forward takes."""
        if self.distiller is None:
            return inputs
        self._set_signature_columns_if_needed()
        return {name: value for name, value in inputs.items() if name not in (*self._only_for_teacher, SAMPLED)}

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            columns: Any = self._signature_columns
            taught = () if self.distiller is None else self.distiller.teacher.accepts
            self._only_for_teacher = [name for name in taught if name not in columns]
            columns.extend(self._only_for_teacher)
