"""Pruning at once: exact sparsity, the original untouched, nothing configured ignored."""

import pytest
import torch

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from tests import tiny


def test_one_call_gives_full_sparsity_and_leaves_the_original():
    """By hand: 0.5 of twelve 32 x 32 or 32 x 64 matrices."""
    model = tiny.tiny_classifier("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model, PruningConfig(sparsity=0.5))
    zeros = sum(int((p == 0).sum()) for n, p in pruned.named_parameters() if ".layer." in n and n.endswith("dense.weight"))
    zeros += sum(int((p == 0).sum()) for n, p in pruned.named_parameters() if ".self." in n and n.endswith("weight"))
    assert zeros == 2 * (4 * 1024 + 2 * 2048) // 2
    assert torch.equal(pruned.classifier.weight, model.classifier.weight)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_several_entries_are_applied_together():
    configs = [PruningConfig(structure="ffn", sparsity=0.5), PruningConfig(sparsity=0.25, target_modules=["query"])]
    pruned = prune(tiny.tiny_classifier("bert"), configs)
    assert pruned.config.intermediate_size == 32
    assert int((pruned.bert.encoder.layer[1].attention.self.query.weight == 0).sum()) == 256


@pytest.mark.parametrize("words", [{"schedule": "linear"}, {"begin_step": 1, "end_step": 5}, {"interval": 2}])
def test_a_schedule_without_training_is_refused(words):
    """It would be ignored, and whoever wrote it expects something to happen slowly."""
    with pytest.raises(RecipeError, match=rf"pruning\.0: {', '.join(sorted(words))} would be ignored without training"):
        prune(tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5, **words))


def test_a_calibration_that_no_criterion_needs_is_refused():
    with pytest.raises(RecipeError, match="calibration would be ignored: criterion magnitude needs none"):
        prune(tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5), calibration=[{"input_ids": torch.ones(1, 4)}])


def test_no_config_at_all_is_refused():
    with pytest.raises(RecipeError, match="no PruningConfig given"):
        prune(tiny.tiny_classifier("bert"), [])


def test_non_finite_weights_are_refused_by_name():
    model = tiny.tiny_classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.key.weight[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key\.weight: 1 of 1024"):
        prune(model, PruningConfig(sparsity=0.5))
