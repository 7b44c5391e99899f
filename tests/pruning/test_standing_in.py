"""Layers that stay, fitted to stand for those that left. What these prevent: a fit to the wrong layer, or to padding, that
training hides, and a layer that changes although it stands for itself alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink import PruningConfig, prune
from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.layers import drop_layers
from hf_shrink.pruning.standing_in import last_of_each
from hf_shrink.targets import oriented
from tests import tiny

POST_NORM = ("bert", "distilbert", "electra", "roberta")


def some(family: str, *, rows: int = 16, count: int = 4) -> list[dict[str, Tensor]]:
    return [tiny.tiny_inputs(family, rows=rows, seed=seed) for seed in range(count)]


def made(family: str, layers: int = 4, **words: Any) -> PreTrainedModel:
    return tiny.spread(tiny.tiny_classifier(family, layers=layers, **words)).eval()


@torch.no_grad()
def states(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """What the last layer of each stack puts out, without padding where there is a mask."""
    seen: list[Tensor] = []
    hooks = [
        layers[-1].register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for _, layers in stacks_of(model, family_of(model, "test"))
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    mask = batch.get("attention_mask")
    return [out[mask.bool()] if mask is not None and mask.shape == out.shape[:2] else out for out in seen]


@pytest.mark.parametrize(
    ("kept", "total", "ends"), [((0, 2, 4), 6, (1, 3, 5)), ((0, 2, 5), 6, (1, 4, 5)), ((1, 3), 4, (2, 3)), ((0,), 3, (2,))]
)
def test_a_layer_stands_for_those_up_to_the_next(kept, total, ends):
    assert last_of_each(kept, total) == ends


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_what_comes_out_is_nearer_to_the_whole_model_in_every_family(family):
    """The end of a layer lies elsewhere in each: behind a normalisation, behind a sum, in a decoder that reads an encoder."""
    model, data, fresh = made(family), some(family), tiny.tiny_inputs(family, rows=16, seed=9)
    before = copy.deepcopy(model.state_dict())
    model.train()
    plain = drop_layers(model, (0, 2))
    fitted = drop_layers(model, (0, 2), reconstruct=data)
    assert model.training and fitted.training, "modes are as they were"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*model.modules(), *fitted.modules()))
    model.eval()
    for whole, cut, fit in zip(*(states(each.eval(), fresh) for each in (model, plain, fitted)), strict=True):
        assert (fit - whole).square().mean() < 0.8 * (cut - whole).square().mean()


def test_it_is_exact_where_one_projection_can_say_what_left():
    """By hand: layers 1 and 3 of a GPT-2 add 0.5 and -2 to every state and do nothing else, which are biases."""
    model = made("gpt2")
    with torch.no_grad():
        for index, shift in ((1, 0.5), (3, -2.0)):
            block = model.transformer.h[index]
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
            block.mlp.c_proj.bias += shift
    fitted = drop_layers(model, (0, 2), reconstruct=some("gpt2"))
    for place, (index, shift) in enumerate(((0, 0.5), (2, -2.0))):
        ours, theirs = fitted.transformer.h[place].mlp.c_proj, model.transformer.h[index].mlp.c_proj
        torch.testing.assert_close(ours.bias, theirs.bias + shift, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-4, rtol=0)
    batch = tiny.tiny_inputs("gpt2", rows=8, seed=5)
    torch.testing.assert_close(fitted(**batch).logits, model(**batch).logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", POST_NORM)
def test_a_normalisation_at_the_end_is_that_of_the_last_layer_it_stands_for(family):
    """The sum before it is fitted to that layer's: another scale behind it would undo the fit."""
    model = made(family, layers=3)
    for _, layers in stacks_of(model, family_of(model, "test")):
        for index, layer in enumerate(layers):
            for module in layer.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    torch.nn.init.constant_(module.weight, 1.0 + index)
    fitted = drop_layers(model, (0, 1), reconstruct=some(family))
    for _, layers in stacks_of(fitted, family_of(fitted, "test")):
        scales = [[m.weight[0].item() for m in layer.modules() if isinstance(m, torch.nn.LayerNorm)] for layer in layers]
        assert scales == [[1.0, 1.0], [2.0, 3.0]], "the one inside a layer is its own"


def test_only_what_reads_the_neurons_changes_and_layers_that_stand_for_themselves_stay():
    model = made("llama")
    fitted = drop_layers(model, (0, 1, 2), reconstruct=some("llama"))
    changed = {name for name, value in fitted.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"model.layers.2.mlp.down_proj.weight"}


def test_padding_does_not_count():
    """Rows padded to twice their length must give the same weights: else a model learns what stands behind a text."""
    model = made("bert")
    short = some("bert")
    for batch in short:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    long = [{name: torch.nn.functional.pad(value, (0, value.shape[1])) for name, value in batch.items()} for batch in short]
    one, other = (drop_layers(model, (0, 2), reconstruct=data) for data in (short, long))
    for layer, twin in zip(one.bert.encoder.layer, other.bert.encoder.layer, strict=True):
        torch.testing.assert_close(layer.output.dense.weight, twin.output.dense.weight, atol=1e-3, rtol=1e-3)


def test_a_model_whose_states_are_no_numbers_is_refused():
    model = made("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="layer 0: calibration gives activations that are not finite"):
        drop_layers(model, (0, 2), reconstruct=some("bert"))


def test_prune_fits_the_layers_of_an_entry_that_says_so():
    """A key that reaches the config and nothing else would leave a student that knows less, without a word."""
    model, data = made("bert"), some("bert")
    config = PruningConfig(structure="layers", sparsity=0.5, reconstruct=True)
    plain, fitted = prune(model, config.model_copy(update={"reconstruct": False})), prune(model, config, data)
    assert fitted.config.num_hidden_layers == plain.config.num_hidden_layers == 2
    whole = model(**data[0]).logits
    assert (fitted(**data[0]).logits - whole).square().mean() < 0.7 * (plain(**data[0]).logits - whole).square().mean()
    assert not torch.equal(
        oriented(fitted.bert.encoder.layer[0].output.dense), oriented(plain.bert.encoder.layer[0].output.dense)
    )
    with pytest.raises(RecipeError, match="calibration: reconstruct needs batches of data"):
        prune(model, config)
