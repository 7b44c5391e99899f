"""Criteria against values worked out by hand; laws are in tests/test_laws.py."""

import torch

from hf_shrink.pruning.criteria import magnitude


def test_magnitude_is_the_absolute_value():
    """A square or a norm ranks the same in one matrix but not when the scores of a neuron are summed."""
    weight = torch.tensor([[-3.0, 0.5], [0.0, 2.0]])
    assert torch.equal(magnitude(weight, {}), torch.tensor([[3.0, 0.5], [0.0, 2.0]]))
