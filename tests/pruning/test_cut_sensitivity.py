"""Quality lost to what no mask stands for. What these prevent: a model scored that is not the one that would be left."""

import copy

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.layers import drop_layers
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.sensitivity import sensitivity
from tests import tiny


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_whole_layer_costs_what_the_model_without_it_scores(family):
    """Scored on a copy: a layer that is put back a little off would change every number after it."""
    model = tiny.spread(tiny.tiny_classifier(family, layers=3))
    batch = tiny.tiny_inputs(family, rows=8)
    before = copy.deepcopy(model.state_dict())

    def score(found):
        return -float(found(**batch).logits.square().mean())

    points = sensitivity(model, PruningConfig(structure="layers", sparsity=0.5), score).points
    with torch.no_grad():
        by_hand = {i: drop_layers(model, [j for j in range(3) if j != i]) for i in range(family == "t5", 3)}
        dense = score(model)
        assert {p.layer: p.loss for p in points} == {i: dense - score(small.eval()) for i, small in by_hand.items()}
    assert {p.parameters for p in points} == {model.num_parameters() - small.num_parameters() for small in by_hand.values()}
    assert all(p.kind == "whole layers" and p.fraction == 1.0 and p.milliseconds is None for p in points)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_narrower_model_costs_what_it_scores(family):
    """Zeros in place of a cut would be scored with another mean in every norm; a fraction that rounds away is no point."""
    model = tiny.spread(tiny.tiny_classifier(family, hidden=32))
    batch = tiny.tiny_inputs(family, rows=8)
    entry = PruningConfig(structure="hidden", sparsity=0.5, round_to=16)

    def score(found):
        return -float(found(**batch).logits.square().mean())

    points = sensitivity(model, [entry, PruningConfig(structure="ffn", sparsity=0.5)], score, fractions=[0.1, 0.5, 0.6]).points
    (point,) = [p for p in points if p.structure == "hidden"]
    small = prune(model, entry).eval()
    with torch.no_grad():
        assert point.loss == score(model.eval()) - score(small) != 0
    assert (point.fraction, point.removed, point.entries, point.layer) == (0.5, 16, 32, None)
    assert point.parameters == model.num_parameters() - small.num_parameters() > 0 and point.macs > 0
    assert {p.structure for p in points} == {"hidden", "ffn"}


def test_what_a_whole_layer_saves_by_hand():
    """Four projections of 32 by 32 and two of 32 by 64; of three layers at 10, 10 and 10 ms each is 10. The only one stays."""
    layers = [PruningConfig(structure="layers", sparsity=0.5), PruningConfig(structure="ffn", sparsity=0.5)]

    def latency(model):
        return 10.0 * len(model.bert.encoder.layer)

    def saved(count: int):
        model = tiny.tiny_classifier("bert", layers=count)
        points = sensitivity(model, layers, lambda found: 0.0, fractions=[0.5], latency=latency).points
        return [(p.macs, p.milliseconds) for p in points if p.structure == "layers"]

    assert saved(3) == [(4 * 32 * 32 + 2 * 32 * 64, 10.0)] * 3 and saved(1) == []


def test_widths_and_layers_that_cannot_be_cut_leave_the_others():
    """Half of a small ELECTRA is as wide as its embeddings, which then need no projection: that ended the whole measurement."""
    both = [PruningConfig(structure="hidden", sparsity=0.5, round_to=8), PruningConfig(structure="layers", sparsity=0.5)]
    electra = tiny.tiny_classifier("electra", hidden=32)  # embeddings of 16
    found = sensitivity(electra, both, lambda model: 0.0, fractions=[0.25, 0.5, 0.75]).points
    assert [p.removed for p in found if p.structure == "hidden"] == [8, 24]
    numbered = tiny.tiny_causal_lm("gpt2", layers=3, scale_attn_by_inverse_layer_idx=True)
    assert [p.layer for p in sensitivity(numbered, both[1], lambda model: 0.0).points] == [2]
    with pytest.raises(RecipeError, match=r"pruning\.0: fractions \[\]"):
        sensitivity(electra, both, lambda model: 0.0, fractions={"pruning.1": [0.5]})
