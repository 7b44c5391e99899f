"""SparseGPT: less output error than its simpler relatives, and the closed form where there is one."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.pruning.masks import keep_top, removed_count
from hf_shrink.pruning.patterns import keep_n_of_m, keep_top_of_rows
from hf_shrink.pruning.sparsegpt import factor_of, prune_by_factor, sparsegpt


def correlated(tokens: int, size: int) -> Tensor:
    """Inputs ``[tokens, size]`` with few directions and unequal scales, as hidden states have."""
    mix = torch.randn(size // 2, size) * torch.rand(size).exp()
    return torch.randn(tokens, size // 2) @ mix + 0.3 * torch.randn(tokens, size)


def test_factor_times_itself_is_the_inverse_of_the_damped_hessian():
    """A lower factor, or one of the Hessian itself, prunes without an error and worse than magnitude."""
    x = correlated(200, 24).double()
    hessian = (x.T @ x).float()
    found = factor_of(hessian, None, 0.01, "w", refits=True)
    factor, damped = found.upper.double(), hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(24)
    torch.testing.assert_close(found.hessian.double(), damped, rtol=1e-6, atol=0)
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(24, dtype=torch.float64), atol=1e-4, rtol=0)
    assert torch.equal(factor, factor.triu())
    lean = factor_of(hessian, None, 0.01, "w", refits=False)
    assert lean.hessian is None, "as large as the factor, and nobody would read it"
    assert torch.equal(lean.upper, found.upper)


def test_two_weights_match_the_optimal_brain_surgeon_worked_out_by_hand():
    """Removing w1 moves w2 by w1 * h12 / h22, the least squares answer; a wrong sign doubles the error."""
    hessian = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    weight = torch.tensor([[0.1, 3.0]])
    found, mask = sparsegpt(weight, hessian, sparsity=0.5, damping=0.0)
    assert mask.tolist() == [[False, True]]
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0 + 0.1 * 1.0 / 4.0]]))


def test_what_stays_after_the_first_input_is_the_least_squares_fit():
    """Three weights, the first goes: the other two must be the regression of the old output on them."""
    x = correlated(50, 4)[:, :3].double()
    weight = torch.tensor([[1e-3, 2.0, -3.0]])
    found, mask = sparsegpt(weight, (x.T @ x).float(), sparsity=1 / 3, damping=0.0)
    assert mask.tolist() == [[False, True, True]]
    fit = torch.linalg.lstsq(x[:, 1:], x @ weight[0].double()).solution
    torch.testing.assert_close(found[0, 1:].double(), fit, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_output_error_is_below_that_of_magnitude_and_of_wanda(sparsity):
    """Its whole reason: with the update the wrong way round it loses to both."""
    x, weight = correlated(400, 64), torch.randn(48, 64)
    hessian = x.T @ x
    found, mask = sparsegpt(weight, hessian, sparsity=sparsity, block=16)
    removed = removed_count(sparsity, weight.numel())
    assert int((~mask).sum()) == removed

    def error(other: Tensor) -> float:
        return float(((weight - other) @ x.T).norm())

    wanda = weight * keep_top_of_rows(weight.abs() * x.norm(dim=0), sparsity)
    magnitude = weight * keep_top(weight.abs(), removed)
    assert error(found) < 0.9 * error(wanda) < 0.9 * error(magnitude) * 1.1
    assert error(found) < 0.9 * error(magnitude)


def test_where_a_group_stands_does_not_matter():
    """In the order of the file what is pruned last has nobody left to make up for it, however much it matters."""
    x, weight = correlated(400, 64), torch.randn(48, 64)
    hessian = x.T @ x
    moved = (torch.randperm(16)[:, None] * 4 + torch.arange(4)).flatten()
    found, mask = sparsegpt(weight, hessian, pattern=(2, 4))
    other, other_mask = sparsegpt(weight[:, moved], hessian[moved][:, moved], pattern=(2, 4))
    assert torch.equal(mask[:, moved], other_mask)
    torch.testing.assert_close(found[:, moved], other, atol=1e-4, rtol=1e-4)


def test_groups_with_large_inputs_are_taken_first():
    """The other way round the error is larger than with no order at all: nothing fails, the model is just worse."""
    scale = torch.linspace(0.1, 5, 64)  # the file's order is the worst one here
    x, weight = correlated(400, 64) * scale, torch.randn(48, 64)
    hessian = x.T @ x
    found, _ = sparsegpt(weight, hessian, pattern=(2, 4))
    other, _ = prune_by_factor(weight, factor_of(hessian, None, 0.01, "w", refits=False), pattern=(2, 4))
    assert float(((weight - found) @ x.T).norm()) < 0.95 * float(((weight - other) @ x.T).norm())


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_weights_that_stay_are_fitted_once_more_all_together(pattern):
    """One pass leaves early inputs as they were before the later ones went: a third of the error, and no error message."""
    x, weight = correlated(400, 64), torch.randn(48, 64)
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    sparsity = None if pattern else 0.5

    def errors(other: Tensor) -> Tensor:
        return (((weight - other) @ damped) * (weight - other)).sum(dim=1)

    found = [sparsegpt(weight, hessian, sparsity=sparsity, pattern=pattern, refit_steps=k) for k in (0, 1, 3, 60)]
    assert all(torch.equal(mask, found[0][1]) and not bool(other[~mask].any()) for other, mask in found)
    lost = [errors(other) for other, _ in found]
    assert all(bool((after <= before * (1 + 1e-5)).all()) for before, after in itertools.pairwise(lost))
    fit = torch.zeros_like(weight, dtype=torch.float64)  # the same by the normal equations of each row
    for row, (own, mask) in enumerate(zip(weight.double(), found[0][1], strict=True)):
        within = damped.double()[mask]
        fit[row, mask] = torch.linalg.solve(within[:, mask], within @ own)
    torch.testing.assert_close(found[-1][0].double(), fit, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 4)])
def test_one_group_gets_the_best_of_all_least_squares_fits(pattern):
    """Scores of single weights miss pairs that stand in for each other: both look cheap, and both would go."""
    x, weight = correlated(100, 4).double(), torch.randn(20, 4).double()
    found, mask = sparsegpt(weight.float(), (x.T @ x).float(), pattern=pattern, damping=0.0)
    for row, kept, own in zip(weight, mask, found, strict=True):
        fits = []
        for stay in itertools.combinations(range(4), pattern[0]):
            columns = x[:, list(stay)]
            fit = torch.linalg.lstsq(columns, x @ row).solution
            fits.append((float((columns @ fit - x @ row).norm()), stay, fit))
        _, stay, fit = min(fits, key=lambda one: one[0])
        assert kept.nonzero().flatten().tolist() == list(stay)
        torch.testing.assert_close(own[list(stay)].double(), fit, atol=1e-3, rtol=1e-3)


def test_a_pattern_with_too_many_choices_is_pruned_weight_by_weight():
    x, weight = correlated(200, 32), torch.randn(8, 32)
    found, mask = sparsegpt(weight, x.T @ x, pattern=(8, 16))
    assert bool((mask.reshape(-1, 16).sum(dim=1) == 8).all()) and bool((found[~mask] == 0).all())
    plain = weight * keep_n_of_m(weight.abs() * x.norm(dim=0), 8, 16)
    assert float(((weight - found) @ x.T).norm()) < float(((weight - plain) @ x.T).norm())


def test_two_of_four_has_less_error_than_wanda_with_the_pattern():
    x, weight = correlated(400, 64), torch.randn(48, 64)
    found, mask = sparsegpt(weight, x.T @ x, pattern=(2, 4))
    assert bool((mask.reshape(-1, 4).sum(dim=1) == 2).all())
    wanda = weight * keep_n_of_m(weight.abs() * x.norm(dim=0), 2, 4)
    assert float(((weight - found) @ x.T).norm()) < 0.9 * float(((weight - wanda) @ x.T).norm())


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 16), st.floats(0, 1), st.integers(0, 1000))
def test_with_uncorrelated_inputs_it_is_magnitude_in_each_block_and_updates_nothing(rows, size, block, sparsity, seed):
    """Any correction here would be invented."""
    weight = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    found, mask = sparsegpt(weight, torch.eye(size), sparsity=sparsity, block=block)
    gone = 0
    for start in range(0, size, block):
        part = weight[:, start : start + block]
        removed = removed_count(sparsity, rows * (start + part.shape[1])) - gone
        assert torch.equal(mask[:, start : start + block], keep_top(part.square(), removed))
        gone += removed
    assert gone == removed_count(sparsity, weight.numel())
    assert torch.equal(found, weight * mask)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 3), (4, 8)])
def test_with_uncorrelated_inputs_a_pattern_is_magnitude_in_each_group(pattern):
    """A block of 128 that cuts a group of three in two would keep another number there."""
    weight = torch.randn(7, 240)
    found, mask = sparsegpt(weight, torch.eye(240), pattern=pattern)
    assert torch.equal(mask, keep_n_of_m(weight.abs(), *pattern))
    assert torch.equal(found, weight * mask)


def test_the_inner_blocks_do_not_change_the_result():
    """Updates are passed on in chunks: one passed on late or twice shows against the plain algorithm, a weight a time."""
    x, weight = correlated(500, 96), torch.randn(5, 96)
    hessian = x.T @ x
    found, mask = sparsegpt(weight, hessian, sparsity=0.5, block=96, refit_steps=0)
    factor = factor_of(hessian, None, 0.01, "w", refits=False).upper.double()
    plain = weight.double()
    for i in range(96):
        error = plain[:, i].masked_fill(mask[:, i], 0.0) / factor[i, i]
        plain = plain - error[:, None] * factor[i]
    torch.testing.assert_close(found.double(), plain * mask, atol=1e-4, rtol=1e-4)


def test_inputs_that_are_always_zero_go_first_and_break_nothing():
    """A dead neuron makes the Hessian singular; its weights must be the ones that cost nothing."""
    x = correlated(100, 16)
    x[:, [3, 7]] = 0
    weight = torch.randn(6, 16)
    found, mask = sparsegpt(weight, x.T @ x, sparsity=0.25)
    assert not bool(mask[:, [3, 7]].any()) and bool(torch.isfinite(found).all())
    all_dead, mask = sparsegpt(weight, torch.zeros(16, 16), sparsity=0.5)
    assert torch.equal(all_dead, weight * keep_top(weight.abs(), 48)) and int(mask.sum()) == 48


def test_weight_and_hessian_stay_as_they_are():
    """The caller goes on with both: weights that read the same inputs share one Hessian."""
    x = correlated(50, 8)
    hessian, weight = x.T @ x, torch.randn(1, 8)
    before = hessian.clone(), weight.clone()
    sparsegpt(weight, hessian, sparsity=0.5)
    assert torch.equal(hessian, before[0]) and torch.equal(weight, before[1])


def test_what_cannot_be_pruned_is_refused():
    """A Hessian with a NaN would spread it over the whole weight."""
    with pytest.raises(RecipeError, match=r"q \[2, 6\]: 6 inputs are not a multiple of 4"):
        sparsegpt(torch.randn(2, 6), torch.eye(6), pattern=(2, 4), name="q")
    with pytest.raises(NonFiniteError, match="q: the Hessian of its inputs"):
        sparsegpt(torch.randn(2, 6), torch.full((6, 6), torch.nan), sparsity=0.5, name="q")
