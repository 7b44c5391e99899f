"""Penalties: values by hand, gradients that drive the right weights and are finite at zero."""

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PenaltyConfig, PruningConfig
from hf_shrink.pruning.penalty import penalty
from hf_shrink.pruning.structures import groups_of
from tests import tiny


def with_penalty(kind: str, weight: float = 0.1, **words) -> PruningConfig:
    return PruningConfig(sparsity=0.5, penalty=PenaltyConfig(kind=kind, weight=weight), **words)


def test_l1_is_the_sum_of_the_targets_absolute_weights_and_of_nothing_else():
    model = tiny.tiny_classifier("bert")
    groups = groups_of(model, [with_penalty("l1", target_modules=["query"])])
    layers = [layer.attention.self.query.weight for layer in model.bert.encoder.layer]
    by_hand = 0.1 * sum(float(weight.abs().sum()) for weight in layers)
    value = penalty(groups)
    assert value.item() == pytest.approx(by_hand, rel=1e-5)
    value.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert touched == {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(2)}


@pytest.mark.parametrize("structure", ["ffn", "heads"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt_neox"])
def test_group_lasso_is_the_sum_of_the_norms_of_whole_units(name, structure):
    """Second implementation: a unit's numbers are those that change when everything but the unit is masked."""
    model = tiny.tiny_classifier(name)
    groups = groups_of(model, [with_penalty("group_lasso", weight=1.0, structure=structure)])
    expected = 0.0
    for group in groups:
        for unit in range(group.shape.numel()):
            mask = torch.arange(group.shape.numel()) == unit
            numbers = torch.cat([(p.parameter * p.spread(mask)).flatten() for p in group.pieces])
            size = sum(int(p.spread(mask).expand(p.parameter.shape).sum()) for p in group.pieces)
            expected += size**0.5 * float(numbers.detach().norm())
    assert penalty(groups).item() == pytest.approx(expected, rel=1e-4)


def test_group_lasso_of_blocks_is_the_norm_of_each_block():
    model = tiny.tiny_classifier("bert")
    (group, *_) = groups = groups_of(model, [with_penalty("group_lasso", 1.0, structure="block", block=[4, 8])])
    weight = group.weights[0].weight.detach()
    first = 32**0.5 * weight[:4, :8].norm()
    rest = with_blocks(groups) - float(first)
    with torch.no_grad():
        group.weights[0].parameter[:4, :8] = 0
    assert penalty(groups).item() == pytest.approx(rest, rel=1e-4)


def with_blocks(groups) -> float:
    return penalty(groups).item()


def test_the_gradient_of_a_unit_that_is_gone_is_zero_not_nan():
    """The root has no slope at zero: one masked unit would turn every weight into NaN."""
    model = tiny.tiny_classifier("bert")
    groups = groups_of(model, [with_penalty("group_lasso", structure="ffn")])
    with torch.no_grad():
        for piece in groups[0].pieces:
            piece.parameter.mul_(piece.spread(torch.arange(64) > 0))
    penalty(groups).backward()
    for piece in groups[0].pieces:
        assert torch.isfinite(piece.parameter.grad).all()
        assert not piece.parameter.grad[piece.spread(torch.arange(64) == 0).expand(piece.parameter.shape)].any()


@pytest.mark.parametrize(("structure", "more"), [("unstructured", {"sparsity": 0.5}), ("n_of_m", {"pattern": [2, 4]})])
def test_group_lasso_without_groups_is_refused(structure, more):
    with pytest.raises(RecipeError, match="group_lasso has no groups with structure"):
        PruningConfig(structure=structure, penalty=PenaltyConfig(kind="group_lasso", weight=0.1), **more)
