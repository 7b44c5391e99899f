"""Surgery: the smaller model computes what the masked one computes, and nothing else about it has changed."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from hf_shrink.errors import MismatchError
from hf_shrink.families import FAMILIES
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.surgery import configured_width, shrink
from hf_shrink.targets import projections
from tests import tiny
from tests.tiny import spread

FFN = PruningConfig(structure="ffn", sparsity=0.5)
IDS = torch.tensor([[2, 5, 9, 3], [2, 12, 6, 3]])
CASES = [(name, make) for name in tiny.FAMILIES for make in (tiny.tiny_classifier, tiny.tiny_causal_lm)]
CASES.remove(("distilbert", tiny.tiny_causal_lm))  # transformers has no causal head for it


def masks_of(model: PreTrainedModel, *configs: PruningConfig) -> dict[str, torch.Tensor]:
    pruner = Pruner(model, configs, total_steps=1)
    pruner.update(1)
    return pruner.masks()


def masked(model: PreTrainedModel, *configs: PruningConfig) -> PreTrainedModel:
    """The slow way round: a copy with zeros where the masks say."""
    zeroed = copy.deepcopy(model)
    pruner = Pruner(zeroed, configs, total_steps=1)
    pruner.update(1)
    pruner.apply()
    return zeroed


@pytest.mark.parametrize(("name", "make"), CASES)
def test_shrunk_model_computes_what_the_masked_model_computes(name, make):
    """One wrong index keeps the shape and ruins the model."""
    model = spread(make(name))
    small, zeroed = shrink(model, masks_of(model, FFN)), masked(model, FFN)
    torch.testing.assert_close(small(IDS).logits, zeroed(IDS).logits, atol=1e-5, rtol=0)
    assert (small(IDS).logits - model(IDS).logits).abs().max() > 1e-2, "the neurons removed have to matter in this test"
    assert configured_width(small.config, FAMILIES[name]) == 32


@pytest.mark.parametrize(("name", "make"), CASES)
def test_the_model_given_is_left_as_it_was(name, make):
    """A half-cut original could neither go on training nor be shrunk again."""
    model = spread(make(name))
    weights, config = {key: value.clone() for key, value in model.state_dict().items()}, model.config.to_dict()
    shrink(model, masks_of(model, FFN))
    assert model.config.to_dict() == config
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "make"), CASES)
def test_shrunk_model_loads_with_plain_transformers(name, make, tmp_path):
    """Where the config says another width than the weights, from_pretrained fails or fills in random numbers."""
    model = spread(make(name))
    small = shrink(model, masks_of(model, FFN))
    small.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if make is tiny.tiny_causal_lm else AutoModelForSequenceClassification
    assert torch.equal(auto.from_pretrained(tmp_path).eval()(IDS).logits, small(IDS).logits)


def test_widths_that_differ_leave_the_config_as_it_was():
    """By hand: layer 1 keeps 16 of 64 neurons, layer 0 all."""
    model = spread(tiny.tiny_classifier("llama"))
    config = PruningConfig(structure="ffn", sparsity=0.75, target_modules=["layers.1.mlp.down_proj"])
    small = shrink(model, masks_of(model, config))
    shapes = [tuple(layer.mlp.down_proj.weight.shape) for layer in small.base_model.layers]
    assert shapes == [(32, 64), (32, 16)] and small.config.intermediate_size == 64
    torch.testing.assert_close(small(IDS).logits, masked(model, config)(IDS).logits, atol=1e-5, rtol=0)


def test_attributes_of_conv1d_say_the_new_width_as_well():
    """GPT-2 stores ``[in, out]``; cut as ``[out, in]`` the wrong side would go."""
    model = tiny.tiny_causal_lm("gpt2")
    config = PruningConfig(structure="ffn", sparsity=0.75, target_modules=["h.0.mlp.c_proj"])
    small = shrink(model, masks_of(model, config))
    block = small.transformer.h[0].mlp
    assert (block.c_fc.nx, block.c_fc.nf, block.c_proj.nx, block.c_proj.nf) == (32, 16, 16, 32)


def test_cutting_the_odd_layer_back_to_one_width_is_stock_again():
    """A second round that ends uniform must say so in the config."""
    model = tiny.tiny_classifier("bert")
    first = PruningConfig(structure="ffn", sparsity=0.5, target_modules=["layer.0.output.dense"])
    second = PruningConfig(structure="ffn", sparsity=0.5, target_modules=["layer.1.output.dense"])
    once = shrink(model, masks_of(model, first))
    twice = shrink(once, masks_of(once, second))
    assert (once.config.intermediate_size, twice.config.intermediate_size) == (64, 32)


def test_a_width_that_the_config_leaves_open_is_written_into_it():
    """GPT-2's ``n_inner: None`` means four times the hidden width, which the cut model no longer has."""
    model = tiny.tiny_causal_lm("gpt2", ffn=None)
    assert model.config.n_inner is None
    small = shrink(model, masks_of(model, FFN))
    assert small.config.n_inner == 64 and model.config.n_inner is None


@pytest.mark.parametrize("name", sorted(set(tiny.FAMILIES) - {"distilbert"}))
def test_tied_weights_stay_tied(name):
    """Untied, the embeddings are saved twice and trained apart."""
    model = tiny.tiny_causal_lm(name, tie_word_embeddings=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    small = shrink(model, masks_of(model, FFN))
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight


def test_dtype_training_mode_and_requires_grad_are_kept():
    """A frozen layer that thaws, or dropout that is off, trains on and only shows in the numbers."""
    model = tiny.tiny_classifier("bert").to(torch.bfloat16).train()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.bert.pooler.eval()
    small = shrink(model, masks_of(model, FFN))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_loss_that_is_alive_still_runs_backward_and_the_small_model_trains():
    """Shrinking through ``parameter.data`` breaks the backward of a loss computed before."""
    model = tiny.tiny_classifier("bert").train()
    alive = model(IDS, labels=torch.tensor([0, 1])).loss
    small = shrink(model, masks_of(model, FFN))
    alive.backward()
    small(IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for m in (model, small) for p in m.parameters())


def test_module_attributes_say_the_new_width():
    """Quantisation and MAC counting read ``in_features``, not the weight."""
    model = tiny.tiny_classifier("llama")
    small = shrink(model, masks_of(model, FFN))
    for module in projections(small).values():
        assert (module.out_features, module.in_features) == tuple(module.weight.shape)


def test_zeros_of_projections_and_cuts_of_layers_go_together():
    model = spread(tiny.tiny_classifier("distilbert"))
    configs = FFN, PruningConfig(sparsity=0.5, target_modules=["q_lin", "out_lin"])
    small, zeroed = shrink(model, masks_of(model, *configs)), masked(model, *configs)
    torch.testing.assert_close(small(IDS).logits, zeroed(IDS).logits, atol=1e-5, rtol=0)
    weight = small.distilbert.transformer.layer[0].attention.q_lin.weight
    assert int((weight == 0).sum()) == 512


def test_heads_that_llama_s_config_refuses_are_left_to_the_loader():
    """Three of four heads do not divide a width of 32: a config that says so cannot even be built."""
    config = tiny.tiny_config("llama")
    config.num_key_value_heads = 4
    model = AutoModelForCausalLM.from_config(config)
    names = [f"model.layers.{i}.self_attn:heads" for i in range(2)]
    small = shrink(model, {name: torch.tensor([True, True, False, True]) for name in names})
    assert small.config.num_attention_heads == 4 and small.model.layers[0].self_attn.q_proj.out_features == 24


def test_a_layer_used_twice_is_cut_once():
    model = spread(tiny.tiny_classifier("bert"))
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    small, zeroed = shrink(model, masks_of(model, FFN)), masked(model, FFN)
    assert small.bert.encoder.layer[1] is small.bert.encoder.layer[0]
    torch.testing.assert_close(small(IDS).logits, zeroed(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (
            {"bert.encoder.layer.7:ffn": torch.ones(64, dtype=torch.bool)},
            r"mask 'bert\.encoder\.layer\.7:ffn' names no projection and no units",
        ),
        ({"bert.encoder.layer.0:ffn": torch.ones(63, dtype=torch.bool)}, r"shape \[63\], the model has \[64\]"),
        ({"bert.encoder.layer.0:ffn": torch.zeros(64, dtype=torch.bool)}, r"keeps 0 of 64 neurons; at least 1 must stay"),
        ({"classifier": torch.ones(32, 3, dtype=torch.bool)}, r"shape \[32, 3\], the model has \[3, 32\]"),
        ({"classifier": torch.ones(3, 16, dtype=torch.bool)}, r"shape \[3, 16\], the model has \[3, 32\]"),
        ({"bert.embeddings": torch.ones(64, dtype=torch.bool)}, r"mask 'bert\.embeddings' names no projection and no units"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, says):
    """Masks of another model would broadcast or cut what happens to have that size."""
    with pytest.raises(MismatchError, match=says):
        shrink(tiny.tiny_classifier("bert"), masks)
