"""The Pruner: masks follow the schedule, zeros are where the masks say, and a resumed run has the same ones."""

import pytest
import torch
from torch.nn import functional as F

from hf_shrink.errors import IntegrityError, NonFiniteError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.masks import pack
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.structures import groups_of
from hf_shrink.targets import oriented, projections
from tests import tiny

BOTH = [
    PruningConfig(structure="ffn", sparsity=0.3, end_step=6),
    PruningConfig(sparsity=0.6, target_modules=["q_lin", "classifier"], begin_step=2, schedule="linear"),
]
IDS, LABELS = torch.tensor([[2, 5, 9, 3], [2, 12, 6, 3]]), torch.tensor([0, 2])


def train(model, pruner, first: int, last: int, optimizer) -> None:
    """The order of a Trainer: backward, gradients masked, optimizer step, masks of the new step, zeros."""
    for step in range(first, last):
        F.cross_entropy(model(IDS).logits, LABELS).backward()
        pruner.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        pruner.update(step + 1)
        pruner.apply()


def test_sparsity_follows_the_schedule_in_exact_counts():
    """By hand: 0.6 of a 32 x 32 query (1024) and of the 3 x 32 head (96), linear from step 2 to 10."""
    model = tiny.tiny_classifier("distilbert")
    pruner = Pruner(model, BOTH[1], total_steps=10)
    seen = []
    for step in range(11):
        pruner.update(step)
        seen.append([int((~mask).sum()) for mask in pruner.masks().values()])
    queries = [0, 0, 0, 77, 154, 230, 307, 384, 461, 538, 614]
    head = [0, 0, 0, 7, 14, 22, 29, 36, 43, 50, 58]
    assert seen == [[query, query, few] for query, few in zip(queries, head, strict=True)]
    assert pruner.sparsity() == {"pruning.0": (614 + 614 + 58) / (1024 + 1024 + 96)}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_apply_zeroes_exactly_what_the_masks_say(name):
    """On a transposed or gated projection a mask laid the wrong way round zeroes another neuron, and nothing fails."""
    model = tiny.tiny_classifier(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.sign(parameter) + (parameter == 0))  # no zero anywhere, biases included
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruner = Pruner(model, PruningConfig(structure="ffn", sparsity=0.5), total_steps=1)
    pruner.update(1)
    pruner.apply()
    masks, expected = pruner.masks(), dict(before)
    for group in groups_of(model, [PruningConfig(structure="ffn", sparsity=0.5)]):
        for neuron in (~masks[group.name]).nonzero().flatten().tolist():
            for piece in group.pieces:
                value = expected[piece.name] = expected[piece.name].clone()
                transposed = oriented(piece.module) is not piece.module.weight and piece.attribute == "weight"
                axis = int(piece.axis == "input") ^ int(transposed)
                value.select(axis, neuron).zero_()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == 64 and any((before[key] != 0).all() and (value == 0).any() for key, value in expected.items())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_unstructured_zeros_are_the_smallest_weights(name):
    """The second implementation: sort each matrix. GPT-2's are stored transposed; the smallest are the same."""
    model = tiny.tiny_classifier(name)
    before = {path: module.weight.detach().clone() for path, module in projections(model).items()}
    pruner = Pruner(model, PruningConfig(sparsity=0.4), total_steps=1)
    pruner.update(1)
    pruner.apply()
    for path in pruner.masks():
        after = projections(model)[path].weight
        threshold = before[path].abs().flatten().sort().values[round(0.4 * after.numel())]
        assert torch.equal(after, torch.where(before[path].abs() >= threshold, before[path], 0.0))


def test_removed_weights_stay_zero_through_adamw_and_their_gradients_are_masked():
    """Momentum and weight decay bring a weight back between two mask updates: the saved file has fewer zeros than reported."""
    model = tiny.tiny_classifier("distilbert").train()
    pruner = Pruner(model, BOTH, total_steps=10)
    train(model, pruner, 0, 8, torch.optim.AdamW(model.parameters(), lr=1e-2))
    groups, masks = groups_of(model, BOTH), pruner.masks()
    F.cross_entropy(model(IDS).logits, LABELS).backward()
    assert any(bool((piece.parameter.grad * ~piece.spread(masks[g.name]) != 0).any()) for g in groups for piece in g.pieces)
    pruner.mask_gradients()
    for group in groups:
        for piece in group.pieces:
            gone = (~piece.spread(masks[group.name])).expand_as(piece.parameter)
            assert (
                bool(gone.any()) and bool((piece.parameter[gone] == 0).all()) and bool((piece.parameter.grad[gone] == 0).all())
            )
            assert bool((piece.parameter.grad[~gone] != 0).any()) or piece.name.startswith("classifier")


def test_masks_are_nested_while_weights_move():
    """A weight that comes back was trained as zero: the count is right and the model is not."""
    model = tiny.tiny_classifier("distilbert").train()
    pruner = Pruner(model, BOTH, total_steps=10)
    optimizer, earlier = torch.optim.AdamW(model.parameters(), lr=5e-2), pruner.masks()
    for step in range(10):
        train(model, pruner, step, step + 1, optimizer)
        masks = pruner.masks()
        assert not any(bool((masks[name] & ~earlier[name]).any()) for name in masks)
        earlier = masks
    assert pruner.sparsity() == {"pruning.0": 2 * 16 / 128, "pruning.1": (614 + 614 + 58) / 2144}, "48 of 64 is nearest to 44.8"


def test_a_resumed_run_is_bit_equal_to_one_that_was_not_stopped():
    """Masks computed anew from the resumed weights would differ where trained weights tie at zero."""
    weights = []
    for stop in (None, 5):
        model = tiny.tiny_classifier("distilbert").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        pruner = Pruner(model, BOTH, total_steps=10)
        torch.manual_seed(1)
        train(model, pruner, 0, stop or 10, optimizer)
        if stop is not None:
            saved = pruner.state_dict(), model.state_dict(), optimizer.state_dict(), torch.get_rng_state()
            model = tiny.tiny_classifier("distilbert", seed=9).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            model.load_state_dict(saved[1])
            optimizer.load_state_dict(saved[2])
            pruner = Pruner(model, BOTH, total_steps=10)
            pruner.load_state_dict(saved[0])
            torch.set_rng_state(saved[3])
            assert not pruner.update(stop), "the masks of that step are there already"
            train(model, pruner, stop, 10, optimizer)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_state_dict_is_one_bit_an_entry_and_round_trips():
    """A mask of 64 neurons is 8 bytes; one of 1024 weights 128."""
    model = tiny.tiny_classifier("distilbert")
    pruner = Pruner(model, BOTH, total_steps=10)
    pruner.update(7)
    state = pruner.state_dict()
    assert {key: len(value) for key, value in state.items()} == {
        "distilbert.transformer.layer.0:ffn": 8,
        "distilbert.transformer.layer.1:ffn": 8,
        "distilbert.transformer.layer.0.attention.q_lin": 128,
        "distilbert.transformer.layer.1.attention.q_lin": 128,
        "classifier": 12,
    }
    other = Pruner(model, BOTH, total_steps=10)
    other.load_state_dict(state)
    assert all(torch.equal(value, pruner.masks()[key]) for key, value in other.masks().items())
    assert other.sparsity() == pruner.sparsity() != {"pruning.0": 0.0, "pruning.1": 0.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("classifier"), r"1 missing \['classifier'\], 0 unknown"),
        (lambda s: s.update(other=s["classifier"]), r"0 missing \[\], 1 unknown \['other'\]"),
        (
            lambda s: s.update(classifier=s["classifier"][:-1]),
            r"mask classifier: torch\.uint8 \[11\], expected torch\.uint8 \[12\]",
        ),
        (lambda s: s.update(classifier=torch.ones(12)), r"mask classifier: torch\.float32"),
    ],
)
def test_masks_of_another_run_are_refused_and_change_nothing(change, says):
    """A subset taken over in silence leaves layers dense that the report calls pruned."""
    pruner = Pruner(tiny.tiny_classifier("distilbert"), BOTH, total_steps=10)
    pruner.update(10)
    state = {key: pack(torch.ones_like(mask)) for key, mask in pruner.masks().items()}
    before = pruner.sparsity()
    change(state)
    with pytest.raises(IntegrityError, match=says):
        pruner.load_state_dict(state)
    assert pruner.sparsity() == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", ["distilbert.transformer.layer.1.ffn.lin2", "classifier"])
def test_non_finite_scores_stop_with_the_tensor_and_leave_every_mask(bad, at):
    """A NaN compares as neither high nor low: rows of NaN are kept and everything else is pruned."""
    model = tiny.tiny_classifier("distilbert")
    pruner = Pruner(model, BOTH, total_steps=10)
    pruner.update(4)
    before = pruner.state_dict()
    with torch.no_grad():
        model.get_submodule(at).weight[0, 0] = bad
    with pytest.raises(
        NonFiniteError, match=rf"^{at}\.weight: 1 of \d+ pruning scores are not finite at step 5; masks unchanged"
    ):
        pruner.update(5)
    assert all(torch.equal(value, before[key]) for key, value in pruner.state_dict().items())


def test_final_only_when_every_entry_has_reached_its_sparsity():
    """The best checkpoint is looked for from here on; before, the densest would win."""
    pruner = Pruner(tiny.tiny_classifier("distilbert"), BOTH, total_steps=10)
    assert [pruner.final(step) for step in range(8, 13)] == [False, False, True, True, True]


def test_schedules_are_checked_against_the_length_of_the_training():
    with pytest.raises(RecipeError, match=r"pruning\.0\.end_step: end_step 6 > 5 steps"):
        Pruner(tiny.tiny_classifier("distilbert"), BOTH, total_steps=5)


def test_nothing_is_left_in_the_model():
    """A buffer or a parametrisation changes the names in every checkpoint, and reloads as random weights."""
    model = tiny.tiny_classifier("distilbert")
    before = list(model.state_dict()), [name for name, _ in model.named_modules()]
    pruner = Pruner(model, BOTH, total_steps=10)
    pruner.update(10)
    pruner.apply()
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()]) == before


def test_a_frozen_target_is_pruned_too():
    """It has no gradient to mask, and that must neither fail nor leave it dense."""
    model = tiny.tiny_classifier("distilbert").requires_grad_(False)
    pruner = Pruner(model, BOTH[1], total_steps=3)
    pruner.update(3)
    pruner.mask_gradients()
    pruner.apply()
    assert int((model.classifier.weight == 0).sum()) == 58


def test_masks_given_out_are_copies():
    pruner = Pruner(tiny.tiny_classifier("distilbert"), BOTH, total_steps=3 * 4)
    for mask in pruner.masks().values():
        mask.zero_()
    assert pruner.sparsity() == {"pruning.0": 0.0, "pruning.1": 0.0}
