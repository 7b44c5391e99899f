"""Criteria that read activations: what a weight or unit carries on calibration data."""

from torch import Tensor

from hf_shrink.pruning.sums import Stats


def wanda(weight: Tensor, stats: Stats) -> Tensor:
    """``|W|`` times the L2 norm of each input feature (arXiv:2306.11695, eq. 1)."""
    return weight.detach().float().abs() * stats["input_norm"]


def activation_norm(weight: Tensor, stats: Stats) -> Tensor:
    """The L2 norm of each input feature, the same for all weights that read it."""
    return stats["input_norm"].float().expand(weight.shape).clone()


def activation_norm_of_units(stats: Stats) -> Tensor:
    """The L2 norm of the unit's activations over tokens and features, ``[units]``."""
    return stats["unit_norm"].float().clone()


def activation_variance(weight: Tensor, stats: Stats) -> Tensor:
    """The variance of each input feature, the same for all weights that read it: a constant can move into a bias."""
    return stats["input_variance"].float().expand(weight.shape).clone()


def activation_variance_of_units(stats: Stats) -> Tensor:
    """The summed variance of the unit's features over tokens, ``[units]``."""
    return stats["unit_variance"].float().clone()
