"""What `prune` and `quantize` return is a model like any other: its own save makes a folder that loads."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.prune import l1_unstructured
from transformers import AutoModelForSequenceClassification

from hf_shrink import PruningConfig, QuantizationConfig, dequantize, prune, quantize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.quantization.bitsandbytes import stored_bits
from tests.loading.cuts import assert_same
from tests.loading.odd import logits
from tests.tiny import tiny_classifier

ONE_LAYER = PruningConfig(structure="ffn", sparsity=0.5, target_modules=["layer.1.intermediate.dense"])


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_model_of_different_widths_saves_itself(bits, tmp_path: Path):
    """The record of its shapes is lost on the way to the file, and the folder opens no more."""
    model = prune(tiny_classifier(hidden=64, ffn=256), ONE_LAYER)
    assert [layer.intermediate.dense.out_features for layer in model.bert.encoder.layer] == [256, 128]
    if bits is not None:
        model = quantize(model, QuantizationConfig(bits=bits))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(before, logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)))


def test_one_width_everywhere_stays_a_stock_model():
    """A record that is not needed would make the folder depend on hf_shrink."""
    model = prune(tiny_classifier(ffn=64), PruningConfig(structure="ffn", sparsity=0.5))
    assert model.config.intermediate_size == 32 and not hasattr(model.config, "quantization_config")


def test_widths_that_become_one_again_need_no_record():
    """A record of shapes that are gone would make the folder unreadable."""
    narrow = prune(tiny_classifier(ffn=64), ONE_LAYER)
    even = prune(narrow, PruningConfig(structure="ffn", sparsity=0.5, target_modules=["layer.0.intermediate.dense"]))
    assert even.config.intermediate_size == 32 and not hasattr(even.config, "quantization_config")


@pytest.mark.parametrize("config", [{"bits": 8}, None, 8], ids=str)
def test_what_is_no_config_is_named_with_one_that_is(config):
    """An AttributeError about a dict sends people to our bug tracker."""
    with pytest.raises(RecipeError, match=r"must be a QuantizationConfig, as QuantizationConfig\(bits=8\); got"):
        quantize(tiny_classifier(), config)


@pytest.mark.parametrize("how", ["prune", "parametrize"])
def test_weights_that_are_computed_from_others_are_refused_with_the_way_out(how):
    """RELIABILITY B30, in memory: an AttributeError, or a copy in which the masks no longer act."""
    model = tiny_classifier(hidden=64, ffn=128)
    layer = model.bert.encoder.layer[1].output.dense
    if how == "prune":
        l1_unstructured(layer, "weight", 0.5)
    else:
        register_parametrization(layer, "weight", nn.Identity())
    for step in (
        lambda: quantize(model, QuantizationConfig(bits=8)),
        lambda: prune(model, PruningConfig(structure="ffn", sparsity=0.5)),
    ):
        with pytest.raises(MismatchError, match=r"layer\.1\.output\.dense is computed .* in 1 layers") as raised:
            step()
        assert "prune.remove(module, 'weight')" in str(raised.value)


def test_what_is_no_transformers_model_is_refused():
    for step in (
        lambda: quantize(nn.Linear(64, 64), QuantizationConfig(bits=8)),
        lambda: prune(nn.Linear(64, 64), PruningConfig(structure="ffn", sparsity=0.5)),
    ):
        with pytest.raises(MismatchError, match="expected a transformers PreTrainedModel, got Linear"):
            step()


def test_calibration_that_the_model_does_not_take_is_named():
    config = QuantizationConfig(bits="auto", budget={"bits_per_weight": 9.0})
    says = r"calibration: BertForSequenceClassification does not take a batch of words: .*\n.*keyword arguments"
    with pytest.raises(MismatchError, match=says):
        quantize(tiny_classifier(hidden=64, ffn=128), config, [{"words": torch.zeros(1, 3, dtype=torch.long)}])
    with pytest.raises(MismatchError, match="batch of attention_mask"):
        quantize(tiny_classifier(hidden=64, ffn=128), config, [{"attention_mask": torch.ones(1, 3, dtype=torch.long)}])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_smaller_float_model_is_loaded_as_floats_and_by_its_own_config(family, tmp_path):
    """transformers holds what comes through a quantizer for quantised: half() was refused, and its own config not read."""
    entry = PruningConfig(structure="heads", sparsity=0.5, round_to=1)
    small = prune(tiny_classifier(family), entry).eval()
    small.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.quantization_config.shapes and not loaded.is_quantized
    for config in (small.config, loaded.config):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path, config=config)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in small.state_dict().items())
    loaded.half().save_pretrained(tmp_path / "half")
    halved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half", dtype="auto")
    assert halved.dtype == torch.float16 and halved.float().num_parameters() == small.num_parameters()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_model_quantised_in_memory_undoes_it_itself(family, bits, tmp_path: Path):
    """transformers' own leaves nn.Linear in the place of GPT-2's Conv1D: the folder does not load, or transposed."""
    small = quantize(tiny_classifier(family, hidden=64, ffn=128), QuantizationConfig(bits=bits))
    expected = dequantize(small)
    back = small.dequantize()  # in place
    assert stored_bits(back) == {} and not hasattr(back.config, "kept_in_high_precision")
    back.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(expected, again, family, family)


def test_what_is_quantised_in_memory_is_stock_to_whoever_asks(tmp_path: Path):
    """The record stays in the words of bitsandbytes, and so do the guards of transformers and peft."""
    small = quantize(tiny_classifier(hidden=64, ffn=128), QuantizationConfig(bits=4))
    assert type(small.config.quantization_config).__name__ == "BitsAndBytesConfig" and small.is_loaded_in_4bit
    with pytest.raises(ValueError, match="cast a bitsandbytes model"):
        small.to(torch.bfloat16)
