"""Every path and config key of the family table, against the real classes of transformers."""

import pytest
from torch import nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import FAMILIES, embedding_parameters, family_of, layers_of, named_layers, stacks_of
from hf_shrink.targets import oriented, projections
from tests import tiny

CAUSAL = sorted(set(tiny.FAMILIES) - {"distilbert"})  # transformers has no causal head for DistilBERT


def test_every_family_of_the_table_has_a_tiny_model():
    """A family without a tiny model would be in the table and in no test."""
    assert set(tiny.ALL_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_layers_are_the_module_list_that_the_config_counts(name):
    """A path to another list would drop or cut something that is not a layer."""
    for layers in (1, 3):
        model = tiny.tiny_classifier(name, layers=layers)
        for stack, found in stacks_of(model, FAMILIES[name]):
            assert isinstance(found, nn.ModuleList) and len(found) == getattr(model.config, stack.num_layers) == layers


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_feed_forward_paths_have_the_width_that_the_config_key_names(name):
    """A wrong path cuts attention; a wrong key leaves the width of the config behind and the folder does not load."""
    family = FAMILIES[name]
    model = tiny.tiny_classifier(name, hidden=32, ffn=48)
    assert getattr(model.config, family.ffn_width) == 48
    for stack, layers in stacks_of(model, family):
        for layer in layers:
            inside = projections(layer)
            inputs = [path for path in stack.ffn_in if path in inside]
            assert [tuple(oriented(inside[path]).shape) for path in inputs] == [(48, 32)] * len(inputs) != []
            assert tuple(oriented(inside[stack.ffn_out]).shape) == (32, 48)
            with_width = {path for path, module in inside.items() if 48 in oriented(module).shape}
            assert with_width == {*inputs, stack.ffn_out}, "a projection that knows the width is missing in the table"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_embedding_paths_hold_every_embedding_of_the_base_model(name):
    """An embedding that the table does not know would be trained where it was meant to be frozen."""
    model = tiny.tiny_classifier(name)
    held = {
        id(module)
        for path in FAMILIES[name].embeddings
        for module in model.base_model.get_submodule(path).modules()
        if isinstance(module, nn.Embedding)
    }
    inside = {id(module) for layer in layers_of(model, FAMILIES[name]) for module in layer.modules()}
    every = {id(module) for module in model.base_model.modules() if isinstance(module, nn.Embedding)}
    assert held == every - inside and (held or name == "vit"), "ViT's embeddings are bare parameters"


@pytest.mark.parametrize("name", CAUSAL)
def test_embedding_parameters_count_a_tied_table_once(name):
    """Counted twice, the embeddings of GPT-2 would be larger than the model."""
    model = tiny.tiny_causal_lm(name)
    found = embedding_parameters(model)
    assert len({id(parameter) for parameter in found.values()}) == len(found)
    assert any(parameter is model.get_input_embeddings().weight for parameter in found.values())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_named_layers_resolve_in_the_model_with_and_without_a_head(name):
    """Names that only resolve below the head would not be found when the masks are applied."""
    classifier = tiny.tiny_classifier(name)
    for model in (classifier, classifier.base_model):
        found = named_layers(model, FAMILIES[name])
        assert [model.get_submodule(path) for path in found] == list(layers_of(model, FAMILIES[name]))


def test_a_layer_that_is_used_twice_is_named_once():
    """ALBERT-style sharing: counted twice, its weights would be pruned twice as often as asked."""
    model = tiny.tiny_classifier("bert")
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    assert list(named_layers(model, FAMILIES["bert"])) == ["bert.encoder.layer.0"]


def test_an_unknown_family_is_refused_with_the_known_ones():
    model = tiny.tiny_classifier("bert")
    model.config.model_type = "brt"
    with pytest.raises(
        RecipeError, match=r"pruning\.0.*'brt' is unknown.*Did you mean 'bert'.*distilbert, electra, gpt2, gpt_neox, llama"
    ):
        family_of(model, "pruning.0")


def test_a_wrapped_model_is_refused_in_words():
    """A wrapper forwards ``config`` but not the path; torch's own AttributeError says neither what nor why."""
    model = tiny.tiny_classifier("bert")
    model.config.model_type = "gpt2"
    with pytest.raises(MismatchError, match=r"config says 'gpt2', but it has no layers at 'h'"):
        layers_of(model, FAMILIES["gpt2"])
