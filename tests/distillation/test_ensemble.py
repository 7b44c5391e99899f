"""Several teachers, against means written out by hand."""

import math

import pytest
import torch

from hf_shrink.distillation.ensemble import Ensemble, combined
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError
from tests.tiny import tiny_classifier, tiny_inputs

SURE, GUESS = torch.tensor([0.98, 0.01, 0.01]), torch.tensor([1 / 3, 1 / 3, 1 / 3])


def test_classes_are_averaged_as_probabilities():
    """The mean of logits lets one sure teacher outvote the rest."""
    logits = torch.stack([SURE.log() + 5.0, GUESS.log() - 2.0])  # a shift of all logits says nothing
    torch.testing.assert_close(combined(logits, "classes", "mean").softmax(-1), (SURE + GUESS) / 2)


def test_confidence_weighs_by_what_each_knows_at_each_position():
    """Weights over the whole batch would let a teacher speak where it guesses."""
    logits = torch.stack([torch.stack([SURE, GUESS]), torch.stack([GUESS, SURE.flip(0)])]).log()
    entropies = -float((SURE * SURE.log()).sum()), math.log(3)
    weight = math.exp(-entropies[0]) / (math.exp(-entropies[0]) + math.exp(-entropies[1]))
    found = combined(logits, "classes", "confidence").softmax(-1)
    torch.testing.assert_close(found[0], weight * SURE + (1 - weight) * GUESS)
    torch.testing.assert_close(found[1], weight * SURE.flip(0) + (1 - weight) * GUESS)


@pytest.mark.parametrize("combine", ["mean", "confidence"])
@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_teachers_of_one_mind_are_as_one(combine, kind):
    """A weight that does not sum to 1 softens or sharpens what all agree on."""
    logits = torch.randn(4, 3)
    found = combined(torch.stack([logits] * 3), kind, combine)
    if kind == "classes":
        found, logits = found.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(found, logits)


def test_labels_are_averaged_each_on_its_own():
    """A softmax over labels that do not exclude each other lets them compete."""
    one, other = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.5, 0.4]])
    found = combined(torch.stack([one.logit(), other.logit()]), "labels", "mean").sigmoid()
    torch.testing.assert_close(found, (one + other) / 2)


def test_values_are_averaged_as_they_are():
    """A regression of one output has no probabilities: their logarithm is always 0."""
    torch.testing.assert_close(combined(torch.tensor([[[2.0]], [[4.0]]]), "values", "mean"), torch.tensor([[3.0]]))


def test_a_batch_without_labels_is_refused_in_words():
    """Sets of labels, averaged as classes, would be other answers; a KeyError says nothing of it."""
    both = Ensemble([Teacher(tiny_classifier("bert", seed=seed)) for seed in (0, 1)])
    with pytest.raises(MismatchError, match="several teachers: a batch without 'labels'"):
        both.outputs(tiny_inputs("bert"))
