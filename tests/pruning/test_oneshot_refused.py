"""What pruning at once refuses. What these prevent: a word that is ignored, and data that a criterion needs and never saw."""

import pytest
import torch
import torch.nn.utils.prune

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.config import PenaltyConfig, PruningConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.structures import groups_of
from tests import tiny


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
    with pytest.raises(NonFiniteError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key\.weight"):
        prune(model, PruningConfig(sparsity=0.5))


def test_fitting_single_weights_needs_the_criterion_that_can():
    with pytest.raises(RecipeError, match="reconstruct would be ignored with criterion wanda"):
        PruningConfig(criterion="wanda", sparsity=0.5, reconstruct=True)


@pytest.mark.parametrize(
    ("words", "calibration", "says"),
    [
        ({"criterion": "fisher"}, None, "calibration: criterion fisher needs batches of data"),
        ({"criterion": "fisher"}, [], "calibration: 0 batches"),
        (
            {"criterion": "magnitude"},
            [tiny.tiny_inputs("bert")],
            "calibration would be ignored: criterion magnitude needs none",
        ),
        ({"structure": "ffn", "reconstruct": True}, None, "calibration: reconstruct needs batches of data"),
        ({"penalty": PenaltyConfig(kind="l1", weight=0.1)}, None, "penalty would be ignored without training"),
        ({"criterion": "taylor"}, [tiny.tiny_inputs("bert")], "no loss from a batch of attention_mask, input_ids; add labels"),
    ],
)
def test_data_that_is_missing_or_too_much_is_said(words, calibration, says):
    with pytest.raises(RecipeError, match=says):
        prune(tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5, **words), calibration)


def test_a_vocabulary_needs_its_tokenizer():
    with pytest.raises(RecipeError, match="vocabulary cuts the tokenizer as well; a recipe does both"):
        prune(tiny.tiny_classifier("bert"), PruningConfig(structure="vocabulary", min_count=1))


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ([1, 2], "calibration batch 0: got list; pass a mapping of tensors"),
        ({"input_ids": [[1, 2]]}, "calibration batch 0: got dict; pass a mapping of tensors"),
        ({"pixels": torch.ones(1, 2)}, "takes no 'pixels'"),
        ({"input_ids": torch.ones(0, 4, dtype=torch.long)}, "has no rows"),
        ({"input_ids": torch.tensor([[99]])}, "input_ids 99, but the model has 20, 0 to 19"),
        ({"input_ids": torch.tensor([[5]]), "labels": torch.tensor([7])}, "labels 7, but the model has 3, 0 to 2"),
    ],
)
def test_calibration_that_the_model_cannot_take_is_said_before_anything_runs(batch, says):
    """torch says `index out of range in self`, and which batch it was stays a riddle."""
    config = PruningConfig(structure="ffn", criterion="fisher", sparsity=0.5)
    with pytest.raises((RecipeError, MismatchError), match=says):
        prune(tiny.tiny_classifier("bert"), config, [batch])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"structure": "ffn", "allocation": "sensitivity"}, "sensitivity needs fractions=, measured before: spend"),
        ({"structure": "ffn", "when": "during"}, "when: during would be ignored without training"),
    ],
)
def test_what_only_a_run_can_do_is_refused_at_once(words, says):
    """Pruned evenly, with `allocation: sensitivity` in its config, a model would be said to be what it is not."""
    with pytest.raises(RecipeError, match=says):
        prune(tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5, **words))


@pytest.mark.parametrize(
    ("fractions", "says"),
    [({"x": 0.5}, "has no fraction|is no mask"), ({"bert.encoder.layer.0:ffn": 0.5}, "layer.1:ffn has no fraction")],
)
def test_fractions_are_those_of_the_masks_and_no_others(fractions, says):
    config = PruningConfig(structure="ffn", sparsity=0.5, allocation="sensitivity")
    with pytest.raises(RecipeError, match=says):
        prune(tiny.tiny_classifier("bert"), config, fractions=fractions)
    names = [f"bert.encoder.layer.{i}:ffn" for i in range(2)]
    small = prune(tiny.tiny_classifier("bert"), config, fractions=dict(zip(names, (0.25, 0.75), strict=True)))
    assert [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer] == [48, 16]


def test_weights_that_are_no_numbers_are_refused_wherever_they_are():
    """A NaN in the embeddings leaves every score finite, and the pruned model worthless."""
    model = tiny.tiny_classifier("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="word_embeddings"):
        prune(model, PruningConfig(structure="ffn", sparsity=0.5))


def test_a_weight_that_is_computed_from_others_is_refused_with_the_way_out():
    """Masks of torch's own pruning beside ours: neither would be what is saved."""
    model = tiny.tiny_classifier("bert")
    torch.nn.utils.prune.l1_unstructured(model.bert.encoder.layer[0].intermediate.dense, "weight", 0.5)
    with pytest.raises(MismatchError, match=r"torch\.nn\.utils\.prune\.remove\(module, 'weight'\)"):
        prune(model, PruningConfig(structure="ffn", sparsity=0.5))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"structure": "block", "block": (16, 16), "sparsity": 0.9}, "0.9 removes 4 of 4 blocks; at least 1 must stay"),
        ({"sparsity": 0.9999}, "0.9999 removes 1024 of 1024 weights; at least 1 must stay"),
        ({"structure": "block", "block": (32, 32), "sparsity": 0.1}, "0.1 removes none of the 1 blocks of .*smaller blocks"),
        ({"sparsity": 1e-9}, "1e-09 removes none of the 1024 weights of"),
    ],
)
def test_a_projection_keeps_something_and_an_entry_removes_something(words, says):
    """Queries that are all zero attend to everything alike, and a grid of two by two lost all of it at 0.9."""
    with pytest.raises(RecipeError, match=rf"^pruning\.0\.sparsity: .*{says}"):
        prune(tiny.tiny_classifier("bert"), PruningConfig(**words))


def test_by_sensitivity_and_globally_a_projection_keeps_one():
    """What is shared out by measurement cannot be refused after it."""
    model = tiny.tiny_classifier("bert")
    words = {"structure": "block", "block": (16, 16), "sparsity": 0.9}
    groups = groups_of(model, [PruningConfig(**words, allocation="sensitivity")])
    assert groups_of(model, [PruningConfig(**words, allocation="global")])
    pruned = prune(model, PruningConfig(**words, allocation="sensitivity"), fractions={g.name: 0.95 for g in groups})
    assert all(bool(pruned.get_submodule(group.name).weight.any()) for group in groups)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"labels": torch.zeros(2, 4, dtype=torch.long)}, r"input_ids \[2, 4\], labels \[2, 4\]: Expected input batch_size"),
        ({"token_type_ids": torch.full((2, 4), 9)}, r"token_type_ids \[2, 4\]: index out of range"),
    ],
    ids=["labels", "types"],
)
@pytest.mark.parametrize("criterion", ["taylor", "activation_norm"])
def test_a_batch_that_fails_inside_the_model_is_named(batch, says, criterion):
    """An error of torch, of an index or a size, says neither which batch it was nor what was in it."""
    model, fine = tiny.tiny_classifier("bert"), {"input_ids": torch.full((2, 4), 5), "labels": torch.zeros(2).long()}
    config = PruningConfig(structure="ffn", criterion=criterion, sparsity=0.5)
    with pytest.raises(MismatchError, match=rf"calibration batch 1: BertForSequenceClassification cannot take .*{says}"):
        prune(model, config, [fine, fine | batch])


def test_a_batch_that_fails_layer_by_layer_is_named():
    types = [{"input_ids": torch.full((2, 4), 5), "token_type_ids": torch.full((2, 4), 9)}]
    for words in ({"criterion": "wanda"}, {"structure": "layers", "criterion": "block_influence"}):
        with pytest.raises(MismatchError, match=r"calibration batch 0: .* cannot take .*token_type_ids \[2, 4\]"):
            prune(tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5, **words), types)
