"""Who teaches whom: teachers in outline, whether each can teach this student, and whether there is anything to learn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.blueprint import blueprint
from hf_shrink.columns import TEACHER_IDS
from hf_shrink.data.format import Collator
from hf_shrink.data.splits import Splits
from hf_shrink.data.tokenize import check_rows
from hf_shrink.data.two_tokenizers import both_collator, in_both
from hf_shrink.distillation.fitting import check_teaching
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import inner_size
from hf_shrink.models.config import DType
from hf_shrink.models.load import load_tokenizer
from hf_shrink.models.pairs import Pair, check_pair
from hf_shrink.models.reference import resolve, shown
from hf_shrink.quantization.bitsandbytes import library
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import existing_quantization
from hf_shrink.recipe import Recipe
from hf_shrink.tasks import SENTENCES


@dataclass(frozen=True)
class Taught:
    """A teacher without its weights, how its classes are read for the student, and how it reads texts."""

    model: PreTrainedModel
    pair: Pair
    tokenizer: PreTrainedTokenizerBase


def teachers_of(
    recipe: Recipe, splits: Splits, start: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, download: bool
) -> tuple[Taught, ...]:
    """The teachers of a recipe, each compared with the model that the student starts from.

    Raises:
        ShrinkError: as ``blueprint``, ``load_tokenizer`` and ``check_pair``.
    """
    found = []
    for config in recipe.teachers:
        own = splits.label_names if config.training is not None else None
        model = blueprint(recipe.task, config.model, config.revision, own, download)
        if config.bits is not None:
            _check_bits(config.model, model, as_taught(config.bits, config.dtype))
        spoken = load_tokenizer(config.model, revision=config.revision, download=download)
        named = bool(splits.label_names)
        crosses = None if recipe.task != "causal-lm" else recipe.distillation is not None and recipe.distillation.crosses
        pair = check_pair(start, model, student_tokenizer=tokenizer, teacher_tokenizer=spoken, classes=named, crosses=crosses)
        found.append(Taught(model, pair, spoken))
    return tuple(found)


def as_taught(bits: Literal[4, 8], dtype: DType) -> QuantizationConfig:
    """How a teacher with ``bits`` is stored; what is multiplied stays in ``dtype``."""
    return QuantizationConfig(bits=4, compute_dtype=dtype) if bits == 4 else QuantizationConfig(bits=8)


def _check_bits(reference: str, model: PreTrainedModel, config: QuantizationConfig) -> None:
    """What storing a teacher in fewer bits would refuse, told without its weights."""
    if (stored := existing_quantization(model)) is not None:
        raise RecipeError(f"teacher.bits: {shown(reference)} is quantised already ({stored}); remove the word.")
    library()
    keep_plan(model, config)


def rows_of_both(
    recipe: Recipe, splits: Splits, teacher: Taught, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, Collator] | None:
    """The training rows in the tokens of student and teacher, and their collator; None where both have one tokenizer.

    Raises:
        MismatchError: as ``in_both``, or the teacher takes fewer tokens.
    """
    if recipe.distillation is None or not recipe.distillation.crosses:
        return None
    rows = in_both(splits.train, tokenizer, teacher.tokenizer, recipe.data.max_length)
    vocabulary, most = (
        getattr(teacher.model.config, "vocab_size", None),
        getattr(teacher.model.config, "max_position_embeddings", None),
    )
    check_rows(rows[TEACHER_IDS], vocabulary, most, "train", "the teacher")
    return rows, both_collator(tokenizer, teacher.tokenizer, splits.format.collator(tokenizer))


def check_teachers(
    recipe: Recipe, teachers: Sequence[Taught], student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse what the first training step would refuse, and a training from which nothing can be learnt.

    Args:
        recipe: with ``distillation``.
        teachers: of ``teachers_of``.
        student: as it begins to train, in outline.
        tokenizer: of the student.

    Raises:
        MismatchError: as ``check_teaching``; a teacher that is the student itself; vectors of another width.
    """
    assert recipe.distillation is not None
    for each in teachers:
        check_teaching(recipe.distillation, student, each.model, max(tokenizer.get_vocab().values()) + 1)
    if recipe.task == "seq2seq":
        _check_starts(student, teachers)
    if recipe.task == SENTENCES:
        _check_widths(student, teachers)
    _refuse_itself(recipe, student, teachers)


def _check_starts(student: PreTrainedModel, teachers: Sequence[Taught]) -> None:
    """Both decoders read the same: the target behind one start token."""
    for each in teachers:
        ours, theirs = (getattr(model.config, "decoder_start_token_id", None) for model in (student, each.model))
        if ours != theirs:
            raise MismatchError(
                f"teacher: its decoder starts with token {theirs}, the student's with {ours}; both must read the same.\n"
                "Set decoder_start_token_id in the config of one of them."
            )


def _check_widths(student: PreTrainedModel, teachers: Sequence[Taught]) -> None:
    """Vectors of different widths have no cosine."""
    for each in teachers:
        ours, theirs = int(student.config.hidden_size), int(each.model.config.hidden_size)
        if ours != theirs:
            raise MismatchError(
                f"teacher: its vectors have {theirs} numbers, the student's {ours}; their cosine needs the same.\n"
                "Use a teacher of the student's hidden width, or drop layers instead of width."
            )


def refuse_smaller(recipe: Recipe, student: PreTrainedModel, teachers: Sequence[Taught]) -> None:
    """A MismatchError where the student, after everything that makes it smaller, is still larger than all its teachers.

    Embeddings do not count: vocabularies are padded to different sizes.
    """
    ours, theirs = inner_size(student), max((inner_size(each.model) for each in teachers), default=math.inf)
    if ours > theirs:
        names = " and ".join(shown(config.model) for config in recipe.teachers)
        raise MismatchError(
            f"teacher: the student {shown(_start(recipe))} has {ours:,} parameters outside its embeddings, more than its "
            f"teacher's {theirs:,} ({names}).\nSwap `model` and `teacher.model`, or make the student smaller."
        )


def _refuse_itself(recipe: Recipe, student: PreTrainedModel, teachers: Sequence[Taught]) -> None:
    """A student that starts from its teacher's weights, all of them, gives its answers before the first step."""
    if recipe.pruning or recipe.student.start == "scratch":
        return
    for config, each in zip(recipe.teachers, teachers, strict=True):
        trained, from_it = config.training is not None, recipe.student.start == "teacher"
        same = from_it or (not trained and (resolve(config.model), config.revision) == (resolve(recipe.model), recipe.revision))
        if same and student.num_parameters() == each.model.num_parameters():
            raise MismatchError(
                f"teacher: {shown(config.model)} ({each.model.num_parameters():,} parameters) is the student itself, of which "
                "nothing is pruned: it says what the student says already.\n"
                "Use another teacher, prune or drop layers of the student, or remove `teacher` and `distillation`."
            )


def _start(recipe: Recipe) -> str:
    return recipe.teachers[0].model if recipe.student.start == "teacher" else recipe.model
