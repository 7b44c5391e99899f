"""What is cut at once: the entries of a list that ask for it, in their order, and the same words and shapes beforehand."""

import pytest
import torch

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import family_of, layers_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.cuts import cut_at_once, cut_words, outline_cuts, reads_data
from hf_shrink.pruning.hidden import cut_hidden, hidden_to_keep
from hf_shrink.pruning.layers import drop_layers, layers_to_keep
from tests import tiny

LAYERS = PruningConfig(structure="layers", sparsity=0.5)
HIDDEN = PruningConfig(structure="hidden", sparsity=0.25)
FFN = PruningConfig(structure="ffn", sparsity=0.5)
VOCABULARY = PruningConfig(structure="vocabulary", sparsity=0.5)
BY_INFLUENCE = LAYERS.model_copy(update={"criterion": "block_influence"})


def shapes(model) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_the_plan_is_what_happens(family):
    """Shapes of the outline on meta, the words, and the cut model: one says what the other does."""
    model = tiny.tiny_classifier(family, layers=4)
    with torch.device("meta"):
        blueprint = tiny.tiny_classifier(family, layers=4)
    configs = [FFN, LAYERS, HIDDEN]
    small = cut_at_once(model, configs)
    outline = outline_cuts(blueprint, configs)
    assert shapes(outline) == shapes(small) and all(p.is_meta for p in outline.parameters())
    assert cut_words(blueprint, configs) == [
        "drops 2 of 4 layers, by magnitude",
        "cuts the hidden width from 32 to 24, by magnitude",
    ]
    assert len(layers_of(small, family_of(small, ""))) == (4 if family == "t5" else 2) and small.config.hidden_size == 24
    assert len(layers_of(model, family_of(model, ""))) == (8 if family == "t5" else 4) and model.config.hidden_size == 32


def test_entries_are_taken_in_their_order():
    """Which dimensions are worth least depends on the layers that are left."""
    model = tiny.tiny_classifier(layers=4)
    with torch.no_grad():
        for index, layer in enumerate(model.bert.encoder.layer):
            for parameter in layer.parameters():
                parameter.mul_(index + 1)
            layer.intermediate.dense.weight[:, 8 * index : 8 * index + 8] = 0
    layers_first = drop_layers(model, layers_to_keep(model, LAYERS, ""))
    layers_first = cut_hidden(layers_first, hidden_to_keep(layers_first, HIDDEN, ""))
    hidden_first = cut_hidden(model, hidden_to_keep(model, HIDDEN, ""))
    hidden_first = drop_layers(hidden_first, layers_to_keep(hidden_first, LAYERS, ""))
    one, other = cut_at_once(model, [LAYERS, HIDDEN]).state_dict(), cut_at_once(model, [HIDDEN, LAYERS]).state_dict()
    assert all(torch.equal(one[name], value) for name, value in layers_first.state_dict().items())
    assert all(torch.equal(other[name], value) for name, value in hidden_first.state_dict().items())
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_to_cut_gives_the_model_itself():
    model = tiny.tiny_classifier()
    assert cut_at_once(model, [FFN, VOCABULARY]) is model and outline_cuts(model, FFN) is model and cut_words(model, []) == []


@pytest.mark.parametrize("config", [LAYERS, HIDDEN])
def test_a_structure_that_is_cut_twice_is_refused(config):
    """The second would take its fraction of what the first has left, which nobody can mean."""
    for call in (cut_at_once, outline_cuts, cut_words):
        with pytest.raises(RecipeError, match=rf"pruning\.0 and pruning\.2 both cut structure: {config.structure}"):
            call(tiny.tiny_classifier(), [config, FFN, config])


def test_errors_name_the_entry_in_the_whole_list():
    too_much = PruningConfig(structure="layers", sparsity=0.9)
    for call in (cut_at_once, outline_cuts, cut_words):
        with pytest.raises(RecipeError, match=r"pruning\.1\.sparsity: layer count: 0\.9 removes 2 of 2 layers; at least 1"):
            call(tiny.tiny_classifier(), [FFN, too_much])
    with pytest.raises(MismatchError, match="embeddings_project"):
        outline_cuts(tiny.tiny_classifier("electra"), PruningConfig(structure="hidden", sparsity=0.5))


def test_calibration_reaches_what_reads_it():
    model, batch = tiny.tiny_classifier(layers=4), tiny.tiny_inputs("bert")
    assert [reads_data(config) for config in (BY_INFLUENCE, LAYERS, HIDDEN, FFN)] == [True, False, False, False]
    assert reads_data(PruningConfig(structure="layers", sparsity=0.5, criterion="wanda"))
    assert not reads_data(PruningConfig(structure="layers", sparsity=0.5, criterion="random"))
    assert not reads_data(PruningConfig(structure="ffn", sparsity=0.5, criterion="taylor"))  # has a mask, is not cut here
    with pytest.raises(RecipeError, match="block_influence needs batches"):
        cut_at_once(model, BY_INFLUENCE)
    small = cut_at_once(model, BY_INFLUENCE, [batch])
    kept = layers_to_keep(model, BY_INFLUENCE, "", [batch])
    assert all(
        torch.equal(small.bert.encoder.layer[i].output.dense.weight, model.bert.encoder.layer[k].output.dense.weight)
        for i, k in enumerate(kept)
    )
    assert cut_words(model, BY_INFLUENCE) == ["drops 2 of 4 layers, by block_influence"]


def test_a_function_is_named_in_words():
    def first_rows(weight, stats):
        return weight

    words = cut_words(tiny.tiny_classifier(), PruningConfig(structure="hidden", sparsity=0.5, criterion=first_rows))
    assert words == [f"cuts the hidden width from 32 to 16, by {__name__}.{first_rows.__qualname__}"]
