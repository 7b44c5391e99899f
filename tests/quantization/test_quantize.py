"""Quantising in memory: the right layers, the right numbers, an original that stays."""

import copy
import logging
import sys

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, BitsAndBytesConfig

from hf_shrink.errors import IntegrityError, NonFiniteError, RecipeError, ResourceError
from hf_shrink.quantization.backend import BACKENDS
from hf_shrink.quantization.bitsandbytes import store
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize
from hf_shrink.repacking import disable_cpu_repacking
from hf_shrink.targets import oriented
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier

IDS = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])
EIGHT = QuantizationConfig(bits=8)
CONFIGS = {
    "int8": EIGHT,
    "int8-no-threshold": QuantizationConfig(bits=8, threshold=0.0),
    "nf4": QuantizationConfig(bits=4),
    "nf4-single": QuantizationConfig(bits=4, double_quant=False),
    "fp4": QuantizationConfig(bits=4, quant_type="fp4"),
    "nf4-bf16": QuantizationConfig(bits=4, dtype="bfloat16", compute_dtype="bfloat16"),
}


def wide(family: str = "bert", **more):
    return tiny_classifier(family, hidden=64, ffn=128, **more)


def stock(model, config: QuantizationConfig):
    """The second implementation: transformers' own way from a state dict, with full names of what is kept."""
    kept = list(keep_plan(model, config).kept)
    if config.bits == 8:
        theirs = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.threshold, llm_int8_skip_modules=kept)
    else:
        theirs = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=config.compute_dtype,
            llm_int8_skip_modules=kept,
        )
    dtype = getattr(torch, config.dtype or "float32")
    state = model.state_dict()
    return type(model).from_pretrained(None, config=model.config, state_dict=state, quantization_config=theirs, dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_what_transformers_makes_bit_for_bit(family, name):
    model = wide(family)
    ours, theirs = quantize(model, CONFIGS[name]), stock(model, CONFIGS[name])
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for key in mine:
        assert mine[key].dtype == other[key].dtype and torch.equal(mine[key], other[key]), key
    disable_cpu_repacking(theirs)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "low", "high"), [("int8", 0.001, 0.01), ("nf4", 0.05, 0.11), ("fp4", 0.05, 0.15)])
def test_every_layer_dequantises_to_its_float_weight(family, name, low, high):
    """A wrong kernel shape or a transposed weight gives plausible logits of another model."""
    model = wide(family)
    small = quantize(model, CONFIGS[name])
    plan = keep_plan(model, CONFIGS[name])
    assert plan.quantized
    for layer in plan.quantized:
        weight, stored = oriented(model.get_submodule(layer)).detach(), small.get_submodule(layer).weight
        if name == "int8":
            back = bnb.functional.int8_vectorwise_dequant(stored.data, stored.SCB)
        else:
            back = bnb.functional.dequantize_4bit(stored.data, stored.quant_state)
        error = ((back - weight).norm() / weight.norm()).item()
        assert low < error < high, (layer, error)


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_zeros_stay_zeros(name):
    """A pruned weight that comes back as a small number is pruned no more."""
    model = wide()
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.data[torch.rand(weight.shape) < 0.5] = 0
    stored = quantize(model, CONFIGS[name]).bert.encoder.layer[0].output.dense.weight
    if name == "int8":
        back = bnb.functional.int8_vectorwise_dequant(stored.data, stored.SCB)
    else:
        back = bnb.functional.dequantize_4bit(stored.data, stored.quant_state)
    assert (weight == 0).sum() > 1000 and (back[weight == 0] == 0).all()


@pytest.mark.parametrize("name", [*CONFIGS, "cast"])
def test_the_original_stays_and_shares_nothing(name):
    model = wide("gpt2").train()
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    small = quantize(model, CONFIGS.get(name, QuantizationConfig(bits=16, dtype="bfloat16")))
    assert model.training and not small.training and model.config.to_dict() == config
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}


def test_layers_of_different_widths_are_quantised_as_they_are():
    """Rebuilding from the config would restore the widths that pruning removed."""
    model = wide()
    layer = model.bert.encoder.layer[1]
    layer.intermediate.dense, layer.output.dense = nn.Linear(64, 40), nn.Linear(40, 64)
    small = quantize(model, EIGHT)
    assert small.bert.encoder.layer[1].output.dense.weight.shape == (64, 40)
    with torch.no_grad():
        difference = (small(IDS).logits - model(IDS).logits).abs().max()
    assert 0 < difference < 0.01


def test_a_head_named_like_a_layer_does_not_spare_the_layers():
    """transformers skips by the end of the name: 'dense' alone would keep half of the model in float."""

    class Awkward(BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.dense = nn.Linear(4, 4)

    model = Awkward(wide().config)
    plan = keep_plan(model, EIGHT)
    assert plan.kept["dense"] == "task head" and len(plan.quantized) == 12
    quantize(model, EIGHT)


def test_converting_other_layers_than_planned_is_an_error():
    model = wide()
    plan = keep_plan(model, EIGHT)
    with pytest.raises(IntegrityError, match="converted 12 layers, 11 were planned"):
        store(model, EIGHT, quantized=plan.quantized[1:], kept=tuple(plan.kept))


@pytest.mark.parametrize(("name", "says"), [("int8", "8 bits"), ("nf4", "4 bits")])
def test_a_quantised_model_is_refused_with_its_method_and_bits(name, says):
    """transformers warns and goes on with what was there."""
    small = quantize(wide(), CONFIGS[name])
    for config in (EIGHT, QuantizationConfig(bits=16, dtype="float16")):
        with pytest.raises(RecipeError, match=f"quantised already \\(bitsandbytes, {says}\\)"):
            quantize(small, config)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),
        ({"quant_method": "hf_shrink", "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "4 bits"),
    ],
)
def test_other_peoples_quantisation_is_recognised_too(stored, says):
    model = wide()
    model.config.quantization_config = stored
    with pytest.raises(RecipeError, match=says):
        quantize(model, EIGHT)


def test_stored_shapes_alone_are_no_quantisation():
    model = wide()
    model.config.quantization_config = {"quant_method": "hf_shrink", "shapes": {}}
    quantize(model, EIGHT)


def test_the_warning_of_every_forward_pass_comes_once(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    for known in list(logger.filters):
        logger.removeFilter(known)
    small = quantize(wide(), EIGHT)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            small(IDS)
    assert sum("inputs will be cast" in record.getMessage() for record in caplog.records) == 1


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        quantize(wide(), EIGHT)


def test_weights_that_are_no_numbers_are_refused():
    """Quantising turns a NaN into a number like any other."""
    model = wide()
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer\.0\.output\.dense\.weight"):
        quantize(model, EIGHT)


@pytest.mark.parametrize("config", [EIGHT, QuantizationConfig(bits=16, dtype="float16")], ids=["int8", "float16"])
def test_weights_too_large_for_the_new_precision_are_refused(config):
    """8 bits go through float16, where 70000 is infinite and its whole row becomes nonsense."""
    model = wide()
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = 70000.0
    with pytest.raises(NonFiniteError, match=r"layer\.0\.output\.dense\.weight"):
        quantize(model, config)


def test_dtype_casts_what_is_not_quantised():
    small = quantize(wide(), QuantizationConfig(bits=8, dtype="bfloat16"))
    plan = keep_plan(wide(), EIGHT)
    for name, parameter in small.named_parameters():
        assert parameter.dtype == (torch.int8 if name.removesuffix(".weight") in plan.quantized else torch.bfloat16), name


def test_eight_bits_are_made_from_the_full_weights_whatever_the_rest_is_cast_to():
    plain, cast = quantize(wide(), EIGHT), quantize(wide(), QuantizationConfig(bits=8, dtype="bfloat16"))
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(plain.state_dict()[name], cast.state_dict()[name])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_casting_equals_loading_in_that_dtype(family):
    """``model.to(bfloat16)`` also rounds rotary tables that loading keeps precise: other logits after a reload."""
    model = tiny_causal_lm(family, hidden=64)
    cast = quantize(model, QuantizationConfig(bits=16, dtype="bfloat16"))
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict(), dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(cast(IDS).logits, loaded(IDS).logits)
    if model.config.tie_word_embeddings:
        assert cast.get_output_embeddings().weight is cast.get_input_embeddings().weight


def test_every_number_of_bits_has_one_backend():
    served = [bits for backend in BACKENDS.values() for bits in backend.bits]
    allowed = QuantizationConfig.model_fields["bits"].annotation.__args__
    assert sorted([*served, 16]) == sorted({*allowed} - {"auto"})


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_a_failure_half_way_leaves_the_original_untouched(name, monkeypatch: pytest.MonkeyPatch):
    """The large weights are lent to the copy while it is made: an error then must not leave them, or half of them, changed."""
    import hf_shrink.quantization.bitsandbytes as backend

    model, real, calls = wide("gpt2"), backend._fill, []
    before, modules = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(backend, "_fill", fails)
    with pytest.raises(MemoryError):
        quantize(model, CONFIGS[name])
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert getattr(model.config, "quantization_config", None) is None
    monkeypatch.undo()
    quantize(model, CONFIGS[name])
