"""The test rows of a recipe with their texts disturbed, tokenised for whoever is asked."""

from datasets import Dataset

from hf_shrink.data.splits import Splits
from hf_shrink.measurement.perturbations import disturbed, some_rows
from hf_shrink.measurement.subjects import Rewritten
from hf_shrink.recipe import Recipe


def rewritten(recipe: Recipe, splits: Splits) -> Rewritten | None:
    """What ``measure_all`` needs for ``measurement.robustness``; None where the recipe does not ask for it."""
    config = recipe.measurement.robust
    if config is None:
        return None
    rows = splits.test.select(some_rows(splits.test["text"], config.rows, config.seed))

    def tokens(kind: str | None, tokenizer: object) -> Dataset:
        columns = {name: list(rows[name]) for name in rows.column_names}
        for name in ("text", "text_pair"):
            if kind is not None and name in columns:
                columns[name] = [disturbed(text, kind, config.rates[kind], config.seed) for text in columns[name]]
        return splits.format.tokens(Dataset.from_dict(columns), tokenizer, recipe.data.max_length, "test")  # type: ignore[arg-type]

    return tokens
