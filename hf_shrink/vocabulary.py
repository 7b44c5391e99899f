"""The ``vocabulary`` entry of a recipe: which tokens its data uses, and how a model that knows only those is judged."""

from pathlib import Path
from typing import Any

from hf_shrink.data.splits import Splits
from hf_shrink.graph_folders import holds_graph
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.judges import judge
from hf_shrink.measurement.subjects import load
from hf_shrink.models.load import load_tokenizer
from hf_shrink.pruning.structures import ROUND_TO
from hf_shrink.pruning.token_ids import special_ids
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.recipe import Recipe


def tokens_to_keep(recipe: Recipe, splits: Splits, tokenizer: Any, model: Any) -> tuple[int, ...] | None:
    """Ids, ascending, that stay for the texts that the student is trained on; None where no entry cuts the vocabulary.

    Validation and test texts are not looked at: what they lose is part of what is measured.
    """
    entry = next((entry for entry in recipe.effective_pruning() if entry.structure == "vocabulary"), None)
    if entry is None:
        return None
    tokens = splits.format.tokens(splits.train, tokenizer, recipe.data.max_length, "train")
    rows = list(tokens["input_ids"])
    if recipe.task == "seq2seq":  # what is to be written may have words that no text has
        rows += list(tokens["labels"])
    counts = count_tokens(rows, model.config.vocab_size)
    kept = kept_tokens(
        tokenizer,
        counts,
        min_count=entry.min_count,
        sparsity=entry.sparsity,
        round_to=entry.round_to or ROUND_TO,
        also=special_ids(model),
    )
    return tuple(kept)


def answers_in_own_words(folder: Path, splits: Splits, max_length: int, *, batch_size: int) -> Answers:
    """The answers of the model in ``folder`` to the test texts, as its own tokenizer reads them."""
    tokenizer = own_tokenizer(folder)
    model, _ = load(folder)
    return judge(model, splits.format.tokens(splits.test, tokenizer, max_length, "test"), tokenizer, batch_size=batch_size)


def own_tokenizer(folder: Path) -> Any:
    """The tokenizer of the model in ``folder``; a graph's lies beside the graph's folder."""
    return load_tokenizer(str(folder.resolve().parent if holds_graph(folder) else folder))
