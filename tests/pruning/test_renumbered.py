"""Patterns with a layer's number, where layers leave."""

import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.renumbered import refuse_numbers
from tests import tiny

LAYERS = PruningConfig(structure="layers", sparsity=0.5)


@pytest.mark.parametrize("word", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_layer_named_by_number_is_refused_where_layers_leave(word, number):
    """Of layers 2 and 3 that stay, the second was called 1: it lost what layer 1 was meant to, and layer 3 was not found."""
    model = tiny.tiny_classifier("bert", layers=4)
    entry = PruningConfig(sparsity=0.5, **{word: (f"layer.{number}.intermediate.dense",)})
    with pytest.raises(RecipeError, match=rf"^pruning\.1\.{word}: 'layer\.{number}.*' names layers by number, but pruning\.0"):
        prune(model, [LAYERS, entry])
    refuse_numbers(model, [entry])


@pytest.mark.parametrize(
    ("name", "pattern"), [("bert", "intermediate.dense"), ("t5", "layer.1.DenseReluDense.wi"), ("gpt2", "c_fc")]
)
def test_names_without_the_layers_own_number_mean_the_same_in_each(name, pattern):
    """T5 counts what is in a layer, too."""
    model = tiny.tiny_classifier(name)
    refuse_numbers(model, [LAYERS, PruningConfig(sparsity=0.5, target_modules=(pattern,))])
