"""Whether a student can learn from a teacher: told from their shapes, before either of them is trained."""

from collections.abc import Mapping
from typing import Any

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.layers import pairs_of
from hf_shrink.distillation.losses import ATTENTION_READS
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.stages import Stage, named, stages_of
from hf_shrink.distillation.vocabularies import shared_words
from hf_shrink.distillation.watching import attention_blocks
from hf_shrink.errors import MismatchError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.heads import heads_of


def check_teaching(config: DistillationConfig, student: Any, teacher: Any, tokens: int | None) -> None:
    """Refuse what the first training step would refuse.

    Args:
        config: the losses.
        student: as it begins to train, on any device; nothing of it runs or changes.
        teacher: likewise.
        tokens: one more than the highest id of the tokenizer.

    Raises:
        MismatchError: vocabularies of which one lacks tokens, layers that are not there, other numbers of heads.
        RecipeError: losses on attention for a model family that is not in the table.
    """
    if config.crosses:
        return
    heads = [model.get_output_embeddings() for model in (student, teacher)]
    if all(head is not None for head in heads):
        shared_words(len(heads[0].weight), len(heads[1].weight), tokens)
    terms = {f"losses.{i}: {term.name}": term for i, term in enumerate(config.losses) if as_loss(term.loss).reads != "logits"}
    if not terms:
        return
    pairs = pairs_of(terms, student, teacher)
    if any(as_loss(term.loss).reads in ATTENTION_READS for term in terms.values()):
        attention_blocks(student, "student")
        attention_blocks(teacher, "teacher")
    _check_heads(terms, pairs, student, teacher)


def planned_stages(config: DistillationConfig, student: Any, teacher: Any) -> tuple[Stage, ...]:
    """The stages of a progressive distillation, told from both models' shapes; none without it.

    Raises:
        MismatchError, RecipeError: as the training would.
    """
    if config.progressive is None:
        return ()
    terms = {name: term for name, term in named(config.losses).items() if as_loss(term.loss).reads != "logits"}
    return stages_of(config.progressive, terms, pairs_of(terms, student, teacher))


def _check_heads(terms: Mapping[str, LossTerm], pairs: Mapping[str, Any], student: Any, teacher: Any) -> None:
    """Attention is compared head by head: as many in both layers of a pair."""
    for name, term in terms.items():
        if as_loss(term.loss).reads == "attentions":
            for ours, theirs in pairs[name]:
                counts = _heads(student)[ours], _heads(teacher)[theirs]
                if counts[0] != counts[1]:
                    raise MismatchError(
                        f"distillation: {name}, layers [{ours}, {theirs}]: layer {ours} of the student has {counts[0]} heads, "
                        f"layer {theirs} of the teacher {counts[1]}.\n"
                        "Use value_relation_kl, query_relation_kl or key_relation_kl, which compare any head counts."
                    )


def _heads(model: Any) -> list[int]:
    """How many query heads each layer has."""
    (stack, layers), *_ = stacks_of(model, family_of(model, "distillation"))
    return [heads_of(layer, stack.attentions[0]).heads for layer in layers]
