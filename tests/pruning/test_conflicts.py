"""Entries and models that pruning refuses. What these prevent: one module masked twice, and a tied or quantised weight that is
pruned behind its owner's back."""

import pytest
import torch
from torch import nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.structures import groups_of
from tests import tiny
from tests.pruning.test_structures import albert, ffn, unstructured


@pytest.mark.parametrize(
    ("configs", "module"),
    [
        (
            [unstructured(target_modules=["query", "key"]), unstructured(target_modules=["key"])],
            "bert.encoder.layer.0.attention.self.key",
        ),
        ([ffn(), ffn(target_modules=["layer.1.output.dense"])], "bert.encoder.layer.1.intermediate.dense"),
        ([unstructured(), ffn()], "bert.encoder.layer.0.intermediate.dense"),
        ([ffn(), unstructured(target_modules=["intermediate.dense"])], "bert.encoder.layer.0.intermediate.dense"),
    ],
)
def test_two_entries_that_claim_one_module_are_refused_naming_all_three(configs, module):
    """The second would score what the first has zeroed, and neither sparsity would be the one asked for."""
    with pytest.raises(RecipeError) as caught:
        groups_of(tiny.tiny_classifier("bert"), configs)
    assert str(caught.value).startswith(f"pruning.0 and pruning.1 both claim {module};")


def test_entries_side_by_side_are_taken():
    model = tiny.tiny_classifier("distilbert")
    found = groups_of(model, [ffn(), unstructured(exclude_modules=["lin1", "lin2"])])
    assert {group.entry for group in found} == {"pruning.0", "pruning.1"}
    assert len({id(piece.parameter) for group in found for piece in group.pieces}) == sum(len(group.pieces) for group in found)


def test_a_module_under_two_names_is_masked_once():
    """Counted twice, a model of shared layers would report twice the zeros it has."""
    model = tiny.tiny_classifier("bert")
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    assert len(groups_of(model, [unstructured()])) == 6
    assert [group.name for group in groups_of(model, [ffn()])] == ["bert.encoder.layer.0:ffn"]


def test_two_modules_that_share_a_weight_are_masked_once():
    model = tiny.tiny_classifier("bert")
    model.bert.encoder.layer[1].attention.self.key.weight = model.bert.encoder.layer[0].attention.self.query.weight
    names = [group.name for group in groups_of(model, [unstructured()])]
    assert len(names) == 11 and "bert.encoder.layer.1.attention.self.key" not in names


def test_a_weight_tied_to_what_is_no_target_is_refused_when_named_and_skipped_by_default():
    """Pruning GPT-2's lm_head would zero the word embeddings without a word."""
    model = tiny.tiny_causal_lm("gpt2")
    with pytest.raises(RecipeError, match=r"pruning\.0\.target_modules: lm_head\.weight is tied to transformer\.wte\.weight"):
        groups_of(model, [unstructured(target_modules=["lm_head"])])
    first, second = (layer.mlp.c_fc for layer in model.transformer.h)
    second.weight = first.weight
    excluded = unstructured(exclude_modules=["h.0.mlp.c_fc"])
    assert not {"transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"} & {g.name for g in groups_of(model, [excluded])}
    with pytest.raises(RecipeError, match=r"h\.0\.mlp\.c_fc\.weight is tied to transformer\.h\.1\.mlp\.c_fc\.weight"):
        groups_of(model, [ffn()])


def test_default_targets_that_are_all_tied_elsewhere_are_refused():
    """Nothing would be left to prune, and nobody would have said so."""
    model = albert()
    model.albert = nn.ModuleDict({"inside": nn.Linear(4, 4)})
    model.classifier.outside = nn.Linear(4, 4)
    model.classifier.outside.weight = model.albert["inside"].weight
    with pytest.raises(RecipeError, match=r"pruning\.0: every one of 1 projections shares its weight"):
        groups_of(model, [unstructured()])


def test_a_quantised_model_is_refused():
    """Its integers are indices, not sizes: pruning them by magnitude is noise."""
    model = tiny.tiny_classifier("bert")
    model.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(MismatchError, match=r"BertForSequenceClassification is already quantised .*prune first, then quantise"):
        groups_of(model, [unstructured()])


def test_a_model_with_an_adapter_is_refused():
    """The default targets would include the adapter's own small matrices."""
    from peft import LoraConfig, get_peft_model

    model, left = tiny.tiny_classifier("bert"), tiny.tiny_classifier("bert")
    left.add_adapter(LoraConfig(target_modules=["query"]))
    left.delete_adapter("default")  # its wrappers stay: heads were a KeyError, and the saved model had random layers
    for wrapped in (get_peft_model(model, LoraConfig(target_modules=["query"])), model, left):
        with pytest.raises(MismatchError, match="carries an adapter"):
            groups_of(wrapped, [unstructured()])
