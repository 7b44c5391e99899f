"""Entries of the pruning section together: their seeds, and where each one stands."""

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import Criterion
from hf_shrink.pruning.entries import named, placed, seeded
from hf_shrink.pruning.hidden import hidden_to_keep
from hf_shrink.pruning.layers import layers_to_keep
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.pruner import Pruner
from tests import tiny
from tests.training.runs import trainer_for

STRUCTURES = [
    {"structure": "unstructured"},
    {"structure": "block", "block": (8, 8)},
    {"structure": "heads"},
    {"structure": "ffn"},
]


@pytest.mark.parametrize("words", STRUCTURES, ids=lambda words: words["structure"])
def test_random_draws_by_its_seed(words):
    """A mean over seeds of one and the same mask has no spread, and says that chance has none."""
    model = tiny.tiny_classifier("bert")
    if words["structure"] == "heads":
        words = words | {"round_to": 1}

    def weights(seed):
        pruned = prune(model, PruningConfig(criterion="random", sparsity=0.5, seed=seed, **words))
        return torch.cat([parameter.flatten() for parameter in pruned.parameters()])

    one, two, again, unsaid = (weights(seed) for seed in (1, 2, 1, None))
    assert torch.equal(one, again) and not torch.equal(one, two)
    assert torch.equal(unsaid, weights(0))


def test_random_draws_layers_and_dimensions_by_its_seed():
    """They are scored elsewhere than masks are."""
    model = tiny.tiny_classifier("bert", layers=8)
    layers = {layers_to_keep(model, entry, "pruning.0") for entry in draws(structure="layers")}
    widths = {tuple(hidden_to_keep(model, entry, "pruning.0").tolist()) for entry in draws(structure="hidden")}
    assert len(layers) > 1 and len(widths) > 1


def draws(**words):
    return [PruningConfig(criterion="random", sparsity=0.5, seed=seed, **words) for seed in (1, 2, 3)]


def test_a_training_draws_by_its_own_seed(tmp_path):
    """README: seed of everything random. An entry's own seed is stronger."""

    def masks(trainers, **words):
        entry = PruningConfig(criterion="random", sparsity=0.5, target_modules=("intermediate.dense",), **words)
        trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry}, seed=trainers, max_steps=1)
        trainer.train()
        return torch.cat([mask.flatten() for mask in trainer.pruner.masks().values()])

    assert not torch.equal(masks(1), masks(2))
    assert torch.equal(masks(1), masks(2, seed=1))


def test_a_seed_that_nothing_reads_is_refused():
    """Only what reads the statistic ``key`` draws."""
    own = Criterion(lambda weight, stats: stats["key"] + 0 * weight, needs=("key",))
    assert PruningConfig(criterion=own, sparsity=0.5, seed=1).draws
    with pytest.raises(RecipeError, match="seed would be ignored with criterion: magnitude"):
        PruningConfig(sparsity=0.5, seed=1)
    entries = [PruningConfig(sparsity=0.5), PruningConfig(sparsity=0.5, criterion="random")]
    assert [entry.seed for entry in seeded(entries, 3)] == [None, 3]


def test_an_entry_knows_its_place_where_others_are_left_out():
    """Numbered again after a filter, an error names the entry that is right."""
    entries = placed([PruningConfig(structure="layers", sparsity=0.5), PruningConfig(sparsity=0.5)])
    assert [place for place, _ in named(entries[1:])] == ["pruning.1"]
    assert Pruner(tiny.tiny_classifier("bert"), entries[1:], 3).sparsity() == {"pruning.1": 0.0}, "what is logged"
    assert [place for place, _ in named([entries[1].held(), entries[1].model_copy(update={"sparsity": 0.1})])] == [
        "pruning.1"
    ] * 2
    assert [place for place, _ in named([PruningConfig(sparsity=0.5)] * 2)] == ["pruning.0", "pruning.1"]
