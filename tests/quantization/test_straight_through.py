"""Forward passes through the rounding of the backend. What these prevent: a training for other numbers than are stored, and a
gradient that is none."""

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.loading.save import save
from hf_shrink.quantization.backend import as_stored
from hf_shrink.quantization.bitsandbytes import restored, stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import tables
from hf_shrink.quantization.mixed import store_mixed
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize
from hf_shrink.quantization.roundings import roundings_of
from hf_shrink.quantization.straight_through import check_stored, weights_as_stored
from hf_shrink.targets import oriented
from tests.tiny import tiny_causal_lm, tiny_classifier

IDS = torch.tensor([[2, 5, 8, 9, 3, 7], [2, 6, 12, 11, 3, 4]])
EIGHT, NF4 = QuantizationConfig(bits=8), QuantizationConfig(bits=4)
FP4 = QuantizationConfig(bits=4, quant_type="fp4", double_quant=False)
HALF, HALF_EIGHT = QuantizationConfig(bits=4, dtype="bfloat16"), QuantizationConfig(bits=8, dtype="bfloat16")


def made(family):
    model = (tiny_classifier if family == "bert" else tiny_causal_lm)(family, hidden=64, ffn=128).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


def rounded_copy(model, config):
    """The second implementation: a float model that holds what the stored one gives back."""
    plain, small = copy.deepcopy(model), quantize(model, config)
    for name in stored_bits(small):
        oriented(plain.get_submodule(name)).data.copy_(restored(small.get_submodule(name)))
    return plain


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("config", [EIGHT, NF4, FP4, HALF, HALF_EIGHT], ids=["int8", "nf4", "fp4", "half nf4", "half int8"])
def test_weights_are_rounded_as_they_are_stored_bit_for_bit(family, config):
    """A block laid along the other side of GPT-2's layers would be another rounding, and so would one before a cast."""
    model, small = made(family), quantize(made(family), config)
    roundings = dict.fromkeys(keep_plan(model, config).quantized, config)
    assert roundings.keys() == stored_bits(small).keys() and roundings
    for name in roundings:
        found = as_stored(oriented(model.get_submodule(name)), config)
        assert torch.equal(found, restored(small.get_submodule(name)))
    check_stored(model, small, roundings)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("config", [EIGHT, NF4], ids=["int8", "nf4"])
def test_answers_and_gradients_are_those_of_the_rounded_model_and_the_weights_stay(family, config):
    """Through the rounding itself the gradient is zero almost everywhere: every layer would stand still."""
    model = made(family)
    before, plain = copy.deepcopy(model.state_dict()), rounded_copy(model, config)
    with weights_as_stored(model, roundings_of(model, config)):
        found = model(IDS).logits
        found.square().sum().backward()
        assert model.state_dict().keys() == before.keys()
    plain(IDS).logits.square().sum().backward()
    exact = {"rtol": 0, "atol": 0} if family != "gpt2" else {"rtol": 1e-4, "atol": 1e-4}  # its own product adds a bias first
    torch.testing.assert_close(found, plain(IDS).logits, **exact)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **exact)
        assert torch.equal(ours, before[name])
    whole, stored = model(IDS).logits, quantize(model, config)(IDS).logits
    assert not torch.allclose(whole, found)  # outside it is the float model again
    kernels = 1e-5 if config is NF4 else 2e-2  # those of 8 bits round what they multiply as well
    assert (stored - found).abs().max() < kernels * found.abs().max()


def test_autocast_rounds_the_same_numbers():
    """A scale found in 16 bits would be another one."""
    model, seen = made("bert"), []
    roundings = roundings_of(model, NF4)
    name = next(iter(roundings))
    with torch.autocast("cpu", torch.bfloat16), weights_as_stored(model, roundings):
        seen.append(as_stored(model.get_submodule(name).weight, NF4))
        assert model(IDS).logits.dtype == torch.bfloat16
    assert torch.equal(seen[0], as_stored(model.get_submodule(name).weight, NF4))


def test_it_comes_off_when_something_fails_and_is_not_put_over_another():
    model = made("bert")
    roundings = roundings_of(model, EIGHT)
    layer = model.get_submodule(next(iter(roundings)))
    with pytest.raises(KeyError), weights_as_stored(model, roundings):
        raise KeyError
    assert "forward" not in vars(layer)
    layer.forward = lambda x: x
    with pytest.raises(MismatchError, match="is replaced already"), weights_as_stored(model, roundings):
        pass
    assert "forward" in vars(layer) and not any("forward" in vars(m) for m in model.modules() if m is not layer)


def test_what_is_stored_otherwise_is_seen():
    """One number, another layer more or less: the promise on the card would be wrong."""
    model = made("gpt2")
    roundings, small = roundings_of(model, NF4), quantize(model, NF4)
    name, *_ = roundings
    with pytest.raises(IntegrityError, match="is not both trained and stored"):
        check_stored(model, small, {n: config for n, config in roundings.items() if n != name})
    weight = oriented(model.get_submodule(name)).data
    weight[3, 5] = -weight[3, 5] + 1
    assert isinstance(model.get_submodule(name), Conv1D)
    with pytest.raises(IntegrityError, match=f"qat: {name} is stored as other numbers"):
        check_stored(model, small, roundings)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("words", [{"bits": 8, "embeddings": "int8"}, {"bits": 4, "embeddings": "bfloat16"}], ids=str)
def test_embeddings_are_rounded_as_the_file_holds_them_and_so_is_what_is_tied_to_them(family, words, tmp_path):
    """A word looked up as it is and predicted as it was rounded: that model is in no file."""
    model, config = made(family), QuantizationConfig(**words)
    roundings, small = roundings_of(model, config), quantize(model, config)
    looked_up = roundings.keys() - stored_bits(small).keys()
    assert looked_up == {name.removesuffix(".weight") for name in tables(model)} and looked_up
    layer = next(iter(stored_bits(small)))
    assert roundings_of(model, {layer: config}).keys() == {layer, *looked_up}
    check_stored(model, small, roundings)
    plain = rounded_copy(model, config)
    for name, table in tables(small).items():
        plain.get_parameter(name).data.copy_(table)
    with weights_as_stored(model, roundings):
        found = model(IDS).logits
        found.square().sum().backward()
    expected = plain(IDS).logits
    expected.square().sum().backward()
    exact = {"rtol": 0, "atol": 0} if family != "gpt2" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **exact)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **exact)
    assert (family == "gpt2") == (model.config.tie_word_embeddings and hasattr(model, "lm_head"))
    save(small, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.get_parameter(name), table) for name, table in tables(small).items())
    check_stored(model, loaded, roundings)


def test_a_table_that_is_stored_otherwise_is_seen():
    """Rounded behind the training's back, or not at all; and one that no training rounded must be as it was."""
    model, config = made("gpt2"), QuantizationConfig(bits=8, embeddings="int8")
    small, roundings = quantize(model, config), roundings_of(model, config)
    with pytest.raises(IntegrityError, match=r"qat: transformer\.wpe is not both trained and stored"):
        check_stored(model, quantize(model, EIGHT), roundings)
    with pytest.raises(IntegrityError, match=r"qat: transformer\.wte is stored as other numbers"):
        check_stored(model, small, roundings_of(model, EIGHT))
    model.transformer.wpe.weight.data[3, 5] += 1
    with pytest.raises(IntegrityError, match=r"qat: transformer\.wpe is stored as other numbers"):
        check_stored(model, small, roundings)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("words", [{"compute_dtype": "bfloat16"}, {"compute_dtype": "float16", "quant_type": "fp4"}], ids=str)
def test_products_in_16_bits_are_those_of_the_stored_layers_bit_for_bit(family, words):
    """In float32 the training would get over what 16 bits lose, and the judge would not see it."""
    model = made(family)
    config = QuantizationConfig(bits=4, embeddings="int8", **words)
    with torch.no_grad(), weights_as_stored(model, roundings_of(model, config)):
        found = model(IDS).logits
    with torch.no_grad():
        assert torch.equal(found, quantize(model, config)(IDS).logits)
    with torch.no_grad(), weights_as_stored(model, roundings_of(model, config.model_copy(update={"compute_dtype": "float32"}))):
        assert not torch.equal(found, model(IDS).logits)
    with weights_as_stored(model, roundings_of(model, config)):
        model(IDS).logits.square().sum().backward()
    assert all(model.get_submodule(name).weight.grad.any() for name in roundings_of(model, NF4))


def test_layers_may_have_different_bits():
    model, auto = made("bert"), QuantizationConfig(bits="auto", budget={"bits_per_weight": 7}, dtype="bfloat16")
    plan = keep_plan(model, auto)
    bits = {name: (4, 8, 16)[i % 3] for i, name in enumerate(plan.quantized)}
    small = store_mixed(model, auto, plan, bits)
    given = {name: auto.at(width) for name, width in bits.items() if width != 16}
    check_stored(model, small, given)


def test_what_cannot_be_rounded_is_refused():
    model = made("bert")
    with pytest.raises(RecipeError, match="as they are stored in 8 or 4 bits, got bits 16"):
        roundings_of(model, QuantizationConfig(bits=16, dtype="bfloat16"))
    for given in (HALF, {"bert.encoder.layer.0.output.dense": HALF}):  # answers in training were not those of what was stored
        with pytest.raises(RecipeError, match=r"quantization\.dtype: bfloat16 rounds norms, biases and heads as well"):
            roundings_of(model, given)
    layers = ("bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.dense")
    with pytest.raises(RecipeError, match="int8 and keep for one model"):
        roundings_of(model, {layers[0]: NF4, layers[1]: QuantizationConfig(bits=4, embeddings="int8")})
    with pytest.raises(MismatchError, match=r"has no projection 'bert\.embeddings\.word_embeddings'"):
        roundings_of(model, {layers[0]: NF4, "bert.embeddings.word_embeddings": NF4})
    assert roundings_of(model, QuantizationConfig(bits=4, dtype="float32", compute_dtype="float32"))
    with pytest.raises(RecipeError, match=r"for auto pass \{layer: config\}"):
        roundings_of(model, QuantizationConfig(bits="auto", budget={"bits_per_weight": 6}))
    with pytest.raises(MismatchError, match=r"has no projection 'bert\.enc'"):
        roundings_of(model, {"bert.enc": NF4})
    with pytest.raises(MismatchError, match="in_features not a multiple of 64; leave it out"):
        roundings_of(tiny_classifier("bert"), {"classifier": NF4})
    with pytest.raises(MismatchError, match="is in bfloat16"):
        roundings_of(made("bert").to(torch.bfloat16), NF4)
