"""Mix the task loss with distillation. The only place that reduces a distillation loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.crossing import CrossingTeacher, paired
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.layers import LayerTerms, without_attention
from hf_shrink.distillation.merged import Kept, merge
from hf_shrink.distillation.outputs import check_outputs, logits_of
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.positions import SAMPLED, is_about_spans, kept_positions, labels_in, targets
from hf_shrink.distillation.ramps import along
from hf_shrink.distillation.stages import Stage, named, stage_at, stages_of
from hf_shrink.distillation.streaming import Heads, streamed
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.distillation.views import Seen, tokens_of
from hf_shrink.distillation.watching import Attended
from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.lines import few
from hf_shrink.sentences import gives_sentences
from hf_shrink.tasks import SENTENCES


class Distiller:
    """``(1 - alpha) * task + alpha * (sum of weight * term)``, each term a mean over the positions that count.

    In a stage of a progressive distillation only its terms on layers count: ``alpha * (sum of weight * term)``.

    Args:
        config: alpha and the terms.
        teacher: gives what is to be learnt: one, several as an ``Ensemble``, or the answers of either from a cache.
        student: the model that learns; needed where a term reads layers.
        shifts_labels: whether the student's loss moves the labels by one, as causal language models do.
        words: how many of the logits count, where the rest is padding of a vocabulary; None for all.
        seed: of the projections between different widths.

    Raises:
        MismatchError: layers that a term names are not there, or a cache holds less than a term needs.
    """

    def __init__(
        self,
        config: DistillationConfig,
        teacher: Teacher | Ensemble | CachedTeacher,
        *,
        student: Any = None,
        shifts_labels: bool = False,
        words: int | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.shifts_labels = shifts_labels
        self.words = words
        self._terms = named(config.losses)
        self._losses = {name: as_loss(term.loss) for name, term in self._terms.items()}
        on_layers = {name: term for name, term in self._terms.items() if self._losses[name].reads != "logits"}
        self._on_logits = {name: term for name, term in self._terms.items() if name not in on_layers}
        if isinstance(teacher, CachedTeacher):
            teacher.check_terms(self._terms)
        elif config.crosses and not isinstance(teacher, CrossingTeacher):
            raise MismatchError("distillation: uld asks a teacher in its own tokens; pass a CrossingTeacher.")
        if on_layers and isinstance(teacher, Ensemble):
            raise MismatchError(f"distillation: {next(iter(on_layers))} compares layers, which several teachers do not share.")
        if config.alpha == 0 and config.alpha_end is None:
            on_layers = without_attention(on_layers)
        compares = bool(on_layers) and isinstance(teacher, Teacher)
        self.layers = LayerTerms(on_layers, student, teacher.models[0], seed=seed) if compares else None
        self.stages: tuple[Stage, ...] = ()
        if config.progressive is not None and self.layers is not None:
            self.stages = stages_of(config.progressive, on_layers, self.layers.pairs)
        told = getattr(getattr(student, "config", None), "problem_type", None)
        self._kind = SENTENCES if gives_sentences(student) else told
        self._decodes = bool(getattr(getattr(student, "config", None), "is_encoder_decoder", False))
        self._totals: dict[str, Tensor] = {}
        self._step, self._steps = 0, 1

    @property
    def streams(self) -> bool:
        """Whether the terms can be had a few rows at a time: they read logits of classes alone, which stand in one order."""
        taught = self.config.alpha > 0 or self.config.alpha_end is not None
        fit = all(loss.outputs & {"classes", "words"} for loss in self._losses.values())  # others: ``mix`` refuses them
        one = isinstance(self.teacher, Teacher | CachedTeacher) and self.teacher.label_order is None
        return taught and fit and self.layers is None and one

    @property
    def alpha(self) -> float:
        """Weight of distillation at the present step."""
        return along(self.config.alpha, self.config.alpha_end, self._step, self._steps)

    @property
    def stage(self) -> Stage | None:
        """The stage of a progressive distillation at the present step; None where everything counts."""
        return stage_at(self.stages, self._step)

    @property
    def projecting(self) -> list[Tensor]:
        """Weights of the projections that the present step uses."""
        if self.layers is None:
            return []
        pairs = self.layers.pairs if self.stage is None else self.stage.pairs
        used = {f"{name}_{ours}_{theirs}" for name, compared in pairs.items() for ours, theirs in compared}
        return [each.get_parameter("weight") for name, each in self.layers.projections.maps.items() if name in used]

    def at(self, step: int, steps: int) -> None:
        """Let weights, temperatures and alpha be those after ``step`` of ``steps`` optimizer steps."""
        self._step, self._steps = step, steps

    @contextmanager
    def watching(self) -> Iterator[dict[int, Attended]]:
        """Collect from one forward of the student what ``mix`` needs beside its outputs."""
        if self.layers is None:
            yield {}
        else:
            with self.layers.watching_student() as attended:
                yield attended

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """True at each position of the batch that counts, the shape of its labels."""
        if self._decodes:  # labels are the decoder's; the attention mask is about what the encoder reads
            inputs = {**inputs, "attention_mask": inputs.get("decoder_attention_mask")}
        kept = kept_positions(inputs, shifts_labels=self.shifts_labels)
        return kept & paired(inputs) if self.config.crosses else kept

    def mix(
        self,
        task_loss: Tensor,
        student_outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        count: Tensor | float | None = None,
        attended: Mapping[int, Attended] | None = None,
    ) -> Tensor:
        """The training loss of one micro-batch, a scalar.

        Args:
            task_loss: scalar, already on the scale on which micro-batches add up to an optimizer step.
            student_outputs: with ``logits`` ``[..., classes]`` and, where asked for, ``hidden_states``.
            inputs: the batch both models see, with its labels; one that is ``SAMPLED`` has no task loss.
            count: positions that count in the whole optimizer step; None where this batch is the whole step.
            attended: what ``watching`` collected.

        Raises:
            MismatchError: what the two models give, or the labels, differ in shape.
            NonFiniteError: what the teacher gives holds a NaN or an infinity where it counts.
        """
        kept, task_loss = self.positions(inputs), 0.0 * task_loss if SAMPLED in inputs else task_loss
        with self.layers.watching_teacher() if self.layers else _nothing() as taught:
            teacher_outputs = self.teacher.outputs(inputs, **self.layers.forward_words if self.layers else {})
        divisor = kept.sum().clamp(min=1) if count is None else count
        if isinstance(likeliest := teacher_outputs.get("kept"), Kept):
            sums = self._merged_sums(student_outputs["logits"], likeliest, inputs, kept)
        else:
            taught_logits = self.teacher.ordered(logits_of(teacher_outputs, inputs))
            sums = self._logit_sums(logits_of(student_outputs, inputs), taught_logits, inputs, kept)
        if self.layers is not None:
            student = Seen(tuple(student_outputs.get("hidden_states") or ()), attended or {})
            sums |= self._layer_sums(student, Seen(tuple(teacher_outputs.get("hidden_states") or ()), taught), inputs, kept)
        mixed = torch.zeros((), device=kept.device)
        self._record("task", task_loss)
        for name, term in self._terms.items():
            if name in sums:
                value = sums[name] / divisor
                self._record(name, value)
                mixed = mixed + self._weight(term) * value
        alpha = self.alpha
        if self.stage is not None:
            return alpha * mixed
        return task_loss if alpha == 0 else (1 - alpha) * task_loss + alpha * mixed

    def stream(
        self,
        run_student: Callable[[], Any],
        heads: Heads,
        inputs: Mapping[str, Any],
        *,
        task_count: Tensor | float,
        count: Tensor | float,
    ) -> Tensor:
        """What ``mix`` gives, for causal language models whose logits would not fit: they are never all there.

        Args:
            run_student: calls the student without labels.
            heads: the last products of both models; of the student alone where the teacher's answers are kept.
            inputs: the batch both models see, with its labels.
            task_count: what the sum of the task loss is divided by.
            count: what the sums of the terms are divided by.

        Raises:
            MismatchError: the vocabularies differ in size.
            NonFiniteError: the teacher's logits hold a NaN or an infinity where it counts.
        """
        assert not isinstance(self.teacher, Ensemble)
        alpha, terms = self.alpha, self._terms
        sizes = [head.out_features for head in (heads.student, heads.teacher) if head is not None]
        if self.words is None and sizes[0] != sizes[-1] and not self.config.crosses:
            raise MismatchError(f"distillation: the student has {sizes[0]} words, the teacher {sizes[1]}.")
        counts = [torch.as_tensor(n, dtype=torch.float32) for n in (task_count, *[count] * len(terms))]
        divisors = torch.stack([n.to(heads.student.weight.device) for n in counts])
        learnt = 0.0 if SAMPLED in inputs else 1.0
        weights = divisors.new_tensor([learnt * (1 - alpha), *(alpha * self._weight(term) for term in terms.values())])
        found = streamed(
            run_student,
            heads,
            self.teacher.before(heads.teacher, inputs),
            targets=targets(inputs),
            kept=self.positions(inputs),
            terms=lambda student, teacher, labels: [self._of_words(name, student, teacher, labels) for name in terms],
            factors=weights / divisors,
        )
        _refuse_not_finite(found.bad_rows)
        for name, value in zip(("task", *terms), found.sums / divisors, strict=True):
            self._record(name, value * learnt if name == "task" else value)
        return found.total

    def read(self, steps: int) -> dict[str, Tensor]:
        """Mean of each term, and of the task loss, over the ``steps`` optimizer steps since the last call."""
        means = {f"loss/{name}": total / max(steps, 1) for name, total in self._totals.items()}
        self._totals = {}
        return means

    def _record(self, name: str, value: Tensor) -> None:
        self._totals[name] = self._totals.get(name, 0.0) + value.detach().float()

    def _weight(self, term: LossTerm) -> float:
        return along(term.weight, term.weight_end, self._step, self._steps)

    def _value(self, name: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """One number a position, ``[positions]``."""
        term, loss = self._terms[name], self._losses[name]
        options: dict[str, Any] = {} if term.beta is None else {"beta": term.beta}
        if "temperature" in loss.takes:
            options["temperature"] = along(term.temperature, term.temperature_end, self._step, self._steps)
        if "labels" in loss.takes:
            options["labels"] = labels
        return loss.function(student, teacher, **options)

    def _of_words(self, name: str, student: Tensor, teacher: Tensor | Kept, labels: Tensor) -> Tensor:
        """As ``_value``, of the words that count: all that both know, or the teacher's likeliest and the rest."""
        student, temperature = student[:, : self.words], self._terms[name].temperature
        if isinstance(teacher, Kept):
            return self._value(name, merge(student, teacher.ids, temperature), teacher.logits(temperature), labels)
        return self._value(name, student, teacher[:, : self.words], labels)

    def _logit_sums(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """The sum of each term on logits over the positions that count."""
        if not self._on_logits or self.stage is not None:
            return {}
        teacher = teacher.to(student.device)
        if self.words is not None and student.shape[:-1] == teacher.shape[:-1]:
            student, teacher = student[..., : self.words], teacher[..., : self.words]
        labels, kind, parts = targets(inputs) if self.shifts_labels else labels_in(inputs), self._kind, 1
        if is_about_spans(inputs):  # one position a row, at which both ends count half
            kept, kind, parts = kept[:, None].expand_as(labels), "question-answering", 2
        if not self.config.crosses:  # of two tokenizers the words differ
            check_outputs(student, teacher, labels, kept, self._on_logits, kind)
        kept = kept.reshape(student.shape[:-1])
        bad = kept & ~teacher.isfinite().all(dim=-1)
        _refuse_not_finite(bad.reshape(len(bad), -1).any(dim=-1).nonzero().flatten().tolist())
        ours, theirs, right = student[kept], teacher[kept], labels.reshape(*kept.shape, *labels.shape[kept.ndim :])[kept]
        return {name: self._value(name, ours, theirs, right).sum() / parts for name in self._on_logits}

    def _merged_sums(self, student: Tensor, teacher: Kept, inputs: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """As ``_logit_sums``, where of the teacher's words only the likeliest are known one by one."""
        student = student[..., : self.words]
        if student.shape[:-1] != teacher.values.shape[:-1] or kept.shape != student.shape[:-1]:
            raise MismatchError(
                f"distillation: student logits {list(student.shape)}, positions in the cache {list(teacher.values.shape[:-1])}."
            )
        ours, theirs, right = student[kept], teacher.to(student.device)[kept], targets(inputs)[kept]
        return {name: self._of_words(name, ours, theirs, right).sum() for name in self._terms}

    def _layer_sums(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        assert self.layers is not None
        states = student.hidden[0][..., 0] if student.hidden else next(iter(student.attended.values())).queries[:, 0, :, 0]
        tokens = tokens_of(kept, inputs, states)
        now = self.layers.pairs if self.stage is None else self.stage.pairs
        sums = {name: self.layers.value(name, student, teacher, tokens, pairs) for name, pairs in now.items()}
        if not all(bool(value.isfinite()) for value in sums.values()):
            _refuse_not_finite(teacher.rows_not_finite(tokens.kept), "layers")
        return sums


@contextmanager
def _nothing() -> Iterator[dict[int, Attended]]:
    yield {}


def _refuse_not_finite(rows: Sequence[int], what: str = "logits") -> None:
    if rows:
        raise NonFiniteError(f"teacher {what}: NaN or infinity in batch rows {few(rows)}.")
