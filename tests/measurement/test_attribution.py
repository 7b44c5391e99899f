"""Attributions. What these prevent: numbers that are no integrated gradients, and models asked about different classes."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_shrink import Recipe
from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.measurement.attribution import attribution, attributions, check_installed
from hf_shrink.measurement.config import ExplainConfig, MeasurementConfig
from hf_shrink.measurement.subjects import Bench, Subject
from tests.measurement.quantised import quantised
from tests.tiny import colour_tokens, tiny_classifier, tiny_tokenizer

pytest.importorskip("captum")
IDS, NONE = torch.tensor([2, 5, 7, 9, 3]), torch.tensor([2, 0, 0, 0, 3])


class Linear(nn.Module):
    """Logits that are linear in the embeddings of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.head(self.words(input_ids).sum(dim=1)))


def test_of_a_linear_model_they_are_weight_times_distance():
    """The definition worked out: w * (x - x0), added up over each token."""
    model = Linear()
    found = attributions(model, IDS, torch.ones_like(IDS), NONE, 1, steps=4)
    by_hand = (model.words(IDS) - model.words(NONE)) @ model.head.weight[1]
    np.testing.assert_allclose(found, by_hand.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_they_add_up_to_what_the_text_changes(family):
    """Completeness: a wrong reference or a missing factor breaks the sum. Nothing of the model changes."""
    model = tiny_classifier(family, initializer_range=0.2).train()
    mask = torch.ones_like(IDS)
    found = attributions(model, IDS, mask, NONE, 2, steps=64)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        full, empty = (model(input_ids=ids[None], attention_mask=mask[None]).logits[0, 2] for ids in (IDS, NONE))
    assert found.sum() == pytest.approx(float(full - empty), rel=0.02) and abs(full - empty) > 1e-3


def bench(*subjects: Subject, explain=ExplainConfig(rows=6, steps=8)) -> Bench:  # noqa: B008 - frozen
    return Bench(
        subjects, MeasurementConfig(explain=explain, bootstrap=100), dataset=colour_tokens(8), tokenizer=tiny_tokenizer()
    )


def test_a_model_agrees_with_itself_and_whatever_order_its_classes_have():
    """Asked for class 0 of its own, a model with its classes in another order would explain another answer."""
    model, turned = tiny_classifier(), tiny_classifier()
    with torch.no_grad():
        turned.classifier.weight.copy_(turned.classifier.weight[[2, 0, 1]].clone())
        turned.classifier.bias.copy_(turned.classifier.bias[[2, 0, 1]].clone())
    other = tiny_classifier(seed=3)
    subjects = (
        Subject("a", model=model),
        Subject("b", model=turned, order=(1, 2, 0)),
        Subject("c", model=other),
        Subject("floor"),
    )
    first, same, apart, floor = attribution(bench(*subjects))
    assert first == [] == floor
    assert same[0].value == pytest.approx(1) and same[0].interval == pytest.approx((1, 1))
    assert apart[0].value < 0.9 and apart[0].interval[0] < apart[0].value < apart[0].interval[1]
    assert apart[0].setting.startswith("6 of 8 examples, labels ") and same[0].unit == "Spearman"


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_models_are_asked_too(bits):
    """Their gradients pass through kernels of their own; a crash here would come at the end of a run."""
    model, small = quantised(bits)
    _, found = attribution(bench(Subject("float", model=model), Subject("small", model=small)))
    assert found[0].value > 0.7


def test_it_is_refused_where_it_would_not_be_measured(monkeypatch):
    with pytest.raises(RecipeError, match="the baseline is no classifier"):
        attribution(bench(Subject("floor"), Subject("a", model=tiny_classifier())))
    assert attribution(bench(Subject("a", model=tiny_classifier()), explain=False)) == [[]]
    text = "version: 1\ntask: causal-lm\nmodel: m\noutput_dir: o\ndata: {dataset: d}\nmeasurement: {explain: true}\n"
    with pytest.raises(RecipeError, match=r"measurement\.explain: .* not of causal-lm"):
        Recipe.from_text(text)
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "captum":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[explain\]'"):
        check_installed()
