"""Adapters added to weights: what is stored is the sum, whatever the layer's kind, and a sum that is wrong is no model."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from hf_shrink import QuantizationConfig
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.quantization.bitsandbytes import restored, stored_bits
from hf_shrink.quantization.quantize import quantize, quantize_by_budget
from hf_shrink.training import merging
from hf_shrink.training.merging import merged, stored_again, weight_error
from hf_shrink.training.recovery import with_adapters, with_correction
from tests.training.test_recovery import EIGHT, FOUR, batches, wide

HALF = QuantizationConfig(bits=4, dtype="bfloat16", compute_dtype="bfloat16")
AUTO = QuantizationConfig(bits="auto", budget={"bits_per_weight": 7})


def adapted(model, small):
    """Adapters of rank 3 with numbers of which none is zero."""
    found = with_adapters(small, rank=3)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw).mul(0.1).to(small.dtype)
    return found


@pytest.mark.parametrize(("family", "config"), [("llama", FOUR), ("gpt2", FOUR), ("gpt2", EIGHT), ("gpt2", HALF)])
def test_a_merged_weight_is_what_was_stored_plus_b_times_a(family, config):
    """GPT-2's layers are transposed: its square ones would take the wrong sum without an error."""
    model = wide(family)
    small = quantize(model, config)
    whole = adapted(model, small)
    result = merged(whole, batches(1)[0])
    names = list(stored_bits(whole.get_base_model()))
    assert names and not stored_bits(result) and not hasattr(result.config, "quantization_config")
    for name in names:
        outer = name.removesuffix(".base_layer")
        layer, plain = whole.get_base_model().get_submodule(outer), result.get_submodule(outer)
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        expected = restored(layer.base_layer).float() + (b @ a).float()
        assert isinstance(plain, Conv1D) == (family == "gpt2")
        torch.testing.assert_close(plain.weight.T if isinstance(plain, Conv1D) else plain.weight.data, expected)
    assert {p.dtype for p in result.parameters()} == {torch.float32}


def test_a_sum_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch):
    whole = adapted(wide(), quantize(wide(), FOUR))
    real = merging.dequantize_in_place

    def spoiled(model, dtype):
        real(model, dtype)
        model.model.layers[1].mlp.down_proj.weight.data.mul_(1.1)

    monkeypatch.setattr(merging, "dequantize_in_place", spoiled)
    with pytest.raises(IntegrityError, match=r"merge: outputs differ by .* more than 0\.001"):
        merged(whole, batches(1)[0])
    with pytest.raises(MismatchError, match="no LoRA on quantised layers"):
        merged(with_no_quantised_layer(), batches(1)[0])


def with_no_quantised_layer():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(wide(), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("config", [FOUR, EIGHT, AUTO])
def test_it_is_stored_again_in_the_bits_that_it_had_and_loads(config, tmp_path):
    model, inputs = wide(), batches(1)[0]
    small = quantize(model, config) if config is not AUTO else quantize_by_budget(model, config, batches(0)).model
    bits = dict(stored_bits(small))
    again = stored_again(merged(adapted(model, small), inputs), small, config)
    assert stored_bits(again) == bits and len(set(bits.values())) == (2 if config is AUTO else 1)
    save(again, tmp_path / "again")
    verify(tmp_path / "again", again, inputs)


def test_the_error_of_weights_counts_adapters():
    """By hand for one layer; and adapters of full rank leave nothing of it."""
    model, small = wide(), quantize(wide(), FOUR)
    off = whole = 0.0
    for name in stored_bits(small):
        weight = model.get_submodule(name).weight.detach()
        off += float((weight - restored(small.get_submodule(name))).norm() ** 2)
        whole += float(weight.norm() ** 2)
    assert weight_error(model, small) == pytest.approx((off / whole) ** 0.5, rel=1e-5)
    assert weight_error(model, with_correction(model, small, rank=999).get_base_model()) < 1e-5
