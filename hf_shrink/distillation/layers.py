"""The terms that compare layers: which ones, what has to be asked of both models for them, and their values."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_shrink.distillation.config import LossTerm
from hf_shrink.distillation.layer_maps import Pair, layer_pairs
from hf_shrink.distillation.losses import ATTENTION_READS
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.projections import Projections
from hf_shrink.distillation.views import Seen, Tokens, compared
from hf_shrink.distillation.watching import Attended, watchable, watched_blocks, watching
from hf_shrink.errors import MismatchError

logger = logging.getLogger(__name__)


class LayerTerms:
    """The terms on embeddings, hidden states and attention.

    Attention of either model is changed to one that can be watched where a term reads it, inside ``learning``.

    Args:
        terms: by the name they are logged under.
        student: a transformers model with one stack of layers, with or without adapters.
        teacher: another one.
        seed: of the projections between different widths.

    Raises:
        MismatchError: a pair of layers that is not there, or a model with two stacks.
    """

    def __init__(self, terms: Mapping[str, LossTerm], student: Any, teacher: Any, *, seed: int = 0) -> None:
        self.terms = terms
        student, teacher = _base(student), _base(teacher)
        self.pairs = pairs_of(terms, student, teacher)
        by_read = {name: as_loss(term.loss).reads for name, term in terms.items()}
        states = [name for name, reads in by_read.items() if reads in ("hidden", "embeddings")]
        self.forward_words = {"output_hidden_states": True} if states else {}
        compared_states = [f"{name}_{ours}_{theirs}" for name in states for ours, theirs in self.pairs[name]]
        widths = [int(model.config.hidden_size) for model in (student, teacher)]
        self.projections = Projections(compared_states, *widths, seed=seed)
        watched = [pair for name, reads in by_read.items() if reads in ATTENTION_READS for pair in self.pairs[name]]
        self.reads_attention = bool(watched)
        self._models = (student, teacher) if watched else ()
        self._blocks: tuple[dict[int, nn.Module], dict[int, nn.Module]] = ({}, {})
        if watched:
            ours, theirs = watched_blocks(student, "student"), watched_blocks(teacher, "teacher")
            self._blocks = {i: ours[i] for i, _ in watched}, {i: theirs[i] for _, i in watched}

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around whole steps of training: backward may run layers again, and must find the attention that ran."""
        with watchable(self._models):
            yield

    @contextmanager
    def watching_student(self) -> Iterator[dict[int, Attended]]:
        """Collect the attention that the terms read from one forward of the student; filled when it ends."""
        with watchable(self._models[:1]), watching(self._blocks[0]) as seen:
            yield seen

    @contextmanager
    def watching_teacher(self) -> Iterator[dict[int, Attended]]:
        """The same for the teacher."""
        with watchable(self._models[1:]), watching(self._blocks[1]) as seen:
            yield seen

    def value(self, name: str, student: Seen, teacher: Seen, tokens: Tokens, pairs: Sequence[Pair]) -> Tensor:
        """The sum of one term over the tokens that count, its mean over ``pairs`` of layers; a float32 scalar with gradient."""
        term, total = self.terms[name], tokens.shares.new_zeros(())
        loss = as_loss(term.loss)
        for ours, theirs in pairs:
            where = f"distillation: {name}, layers [{ours}, {theirs}]"
            one, other = compared(loss.reads, student, teacher, (ours, theirs), tokens.kept, where)
            if loss.reads in ("hidden", "embeddings"):
                one = self.projections(f"{name}_{ours}_{theirs}", one)
            if one.shape != other.shape:
                raise MismatchError(f"{where}: the student's states are {one.shape[-1]} wide, the teacher's {other.shape[-1]}.")
            total = total + (loss.function(one, other) * tokens.shares).sum()
        return total / len(pairs)


def without_attention(terms: Mapping[str, LossTerm]) -> dict[str, LossTerm]:
    """The terms of which nothing is learnt that can be had from the plain training; said in the log where some are left out."""
    kept = {name: term for name, term in terms.items() if as_loss(term.loss).reads not in ATTENTION_READS}
    if left := [name for name in terms if name not in kept]:
        logger.warning("distillation: %s left out at alpha 0: to be seen, attention would have to change.", ", ".join(left))
    return kept


def pairs_of(terms: Mapping[str, LossTerm], student: Any, teacher: Any) -> dict[str, tuple[Pair, ...]]:
    """The layers that each term compares, for models without adapters.

    Raises:
        MismatchError: a pair of layers that is not there, or a model with two stacks.
    """
    sizes, found = [_layers_of(student, "student"), _layers_of(teacher, "teacher")], {}
    for name, term in terms.items():
        default = as_loss(term.loss).layers
        found[name] = layer_pairs(term.layers or default, *sizes, where=f"distillation: {name}") if default else ((0, 0),)
    return found


def _layers_of(model: Any, who: str) -> int:
    if getattr(model.config, "is_encoder_decoder", False):
        raise MismatchError(
            f"distillation: the {who} has an encoder and a decoder; losses on layers know one stack only. Use losses on logits."
        )
    return int(model.config.num_hidden_layers)


def _base(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)()
