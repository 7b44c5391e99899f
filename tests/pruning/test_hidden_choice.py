"""Which dimensions of the hidden width go, and what is refused. What these prevent: a width that kernels like and nobody asked
for, and dimensions scored by weights that do not leave with them."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import (
    ElectraForSequenceClassification,
    LlamaForSequenceClassification,
)

from hf_shrink import QuantizationConfig, quantize
from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.hidden import cut_hidden, hidden_to_keep, hidden_width
from tests import tiny
from tests.pruning.test_hidden import logits, rough, some


def cut(sparsity: float = 0.5, **more: object) -> PruningConfig:
    return PruningConfig(structure="hidden", sparsity=sparsity, **more)


@pytest.mark.parametrize(
    ("family", "sparsity", "round_to", "width"),
    [
        ("bert", 0.5, None, 16),
        ("bert", 0.3, None, 24),
        ("bert", 0.95, None, 8),
        ("bert", 0.0, None, 32),
        ("bert", 0.5, 5, 15),
        ("llama", 0.5, 5, 20),  # its config takes only multiples of its four heads
        ("qwen2", 0.5, 5, 15),
        ("t5", 0.6, 1, 13),
    ],
)
def test_the_width_is_the_nearest_multiple(family, sparsity, round_to, width):
    model, config = tiny.tiny_classifier(family), cut(sparsity, round_to=round_to) if round_to else cut(sparsity)
    keep = hidden_to_keep(model, config, "pruning.0")
    assert hidden_width(model, config, "pruning.0") == width == int(keep.sum()) and keep.shape == (32,)
    assert logits(cut_hidden(model, keep), tiny.tiny_inputs(family)).isfinite().all()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (cut(0.99), r"pruning\.1\.sparsity: 0\.99 removes 32 of 32 .*at least 1"),
        (cut(0.1), r"pruning\.1\.round_to: sparsity 0\.1 keeps all 32 .*multiples of 8; lower round_to"),
        (cut(0.5, round_to=32), r"keeps all 32 .*multiples of 32"),
    ],
)
def test_what_cannot_be_meant_is_refused(config, says):
    with pytest.raises(RecipeError, match=says):
        hidden_to_keep(tiny.tiny_classifier(), config, "pruning.1")


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (torch.zeros(32, dtype=torch.bool), "0 of 32 .*1 to 32 can stay"),
        (torch.ones(31, dtype=torch.bool), r"bool \[32\]"),
        (torch.ones(32), r"float32 \[32\].*takes bool"),
        (some(18), "hidden width 18.*multiples of 4 heads"),
    ],
)
def test_masks_that_do_not_fit_are_refused(keep, says):
    with pytest.raises(MismatchError, match=says):
        cut_hidden(tiny.tiny_classifier("llama"), keep)


def test_models_that_cannot_be_cut_are_refused():
    unknown = tiny.tiny_classifier()
    unknown.config.model_type = "brand-new"
    with pytest.raises(RecipeError, match=r"pruning\.0\.structure: hidden: model family 'brand-new'.*Known: bert"):
        hidden_to_keep(unknown, cut(), "pruning.0")
    with pytest.raises(MismatchError, match="already quantised"):
        cut_hidden(quantize(tiny.tiny_classifier(hidden=64), QuantizationConfig(bits=8)), some(32, of=64))
    odd = tiny.tiny_classifier()
    odd.extra = nn.Linear(32, 32)
    with pytest.raises(MismatchError, match=r"extra\.weight: no part"):
        cut_hidden(odd, some(16))


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "vit"])
def test_a_dimension_is_worth_the_weights_that_leave_with_it(family):
    """In GPT-2 weights lie the other way round: scored along the wrong axis, half of each score is another dimension's."""
    model = rough(tiny.tiny_classifier(family))

    def total(found: nn.Module) -> float:
        return sum(float(p.detach().abs().double().sum()) for p in found.parameters() if p.dim() > 1)

    without = [total(cut_hidden(model, torch.arange(32) != index)) for index in range(32)]
    best = sorted(range(32), key=lambda index: total(model) - without[index])[16:]
    keep = hidden_to_keep(model, cut(), "pruning.0")
    assert keep.nonzero().flatten().tolist() == sorted(best)


def test_a_tied_table_is_scored_once():
    model = rough(tiny.tiny_causal_lm("gpt2"))
    untied = copy.deepcopy(model)
    untied.lm_head = nn.Linear(32, len(tiny.VOCABULARY), bias=False)
    untied.lm_head.weight.data.zero_()
    assert torch.equal(hidden_to_keep(model, cut(), "pruning.0"), hidden_to_keep(untied, cut(), "pruning.0"))


def test_other_scores_than_magnitude():
    """magnitude_l2 is moved by one large weight, a sum of absolute values by many; random looks at none."""
    model = tiny.tiny_classifier("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        model.model.embed_tokens.weight[:, :16] += 0.1
        model.model.embed_tokens.weight[0, 16:] += 1.9
    first, last = torch.arange(32) < 16, torch.arange(32) >= 16
    assert torch.equal(hidden_to_keep(model, cut(), "pruning.0"), first)
    assert torch.equal(hidden_to_keep(model, cut(criterion="magnitude_l2"), "pruning.0"), last)
    assert torch.equal(hidden_to_keep(model, cut(criterion=lambda weight, stats: -weight.detach()), "pruning.0"), last)
    drawn = hidden_to_keep(model, cut(criterion="random"), "pruning.0")
    assert torch.equal(drawn, hidden_to_keep(rough(model), cut(criterion="random"), "pruning.0")) and int(drawn.sum()) == 16
    assert not torch.equal(drawn, first) and not torch.equal(drawn, last)


def test_weights_that_are_not_finite_are_refused_by_name():
    model = tiny.tiny_classifier("llama")
    assert isinstance(model, LlamaForSequenceClassification)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        hidden_to_keep(model, cut(), "pruning.0")


def test_electra_scores_its_projection_of_the_embeddings():
    model = tiny.tiny_classifier("electra")
    assert isinstance(model, ElectraForSequenceClassification)
    model.electra.embeddings_project.weight.data[:24] += 10.0
    assert torch.equal(hidden_to_keep(model, cut(0.25), "pruning.0"), torch.arange(32) < 24)
