"""The report of each layer against values worked out by hand and against bitsandbytes' own numbers."""

import math

import bitsandbytes as bnb
import pytest
import torch

from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.fidelity import BINS, SIGMAS, errors, fidelity
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize
from hf_shrink.targets import oriented
from tests.tiny import tiny_classifier


def test_error_and_ratio_by_hand():
    """9 + 16 = 25 of signal, 0.01 + 0.04 = 0.05 of noise: 10 log10(500) dB, and a mean of 0.0125 over four numbers."""
    weight, stored = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.1, 4.2], [0.0, 0.0]])
    mse, sqnr = errors(weight, stored)
    assert mse == pytest.approx(0.0125, rel=1e-5) and sqnr == pytest.approx(10 * math.log10(500), rel=1e-5)
    assert errors(weight, weight) == (0.0, None)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(("bits", "low", "high"), [(8, 40, 60), (4, 17, 24)])
def test_each_layer_is_compared_with_what_is_stored(family, bits, low, high):
    """A transposed weight would be some 3 dB below its own noise."""
    model, config = tiny_classifier(family, hidden=64, ffn=128), QuantizationConfig(bits=bits)
    small = quantize(model, config)
    plan, found = keep_plan(model, config), {each.name: each for each in fidelity(model, small, config).layers}
    assert len(found) == len(plan.quantized) + len(plan.kept)
    for name in plan.quantized:
        layer, weight = small.get_submodule(name), oriented(model.get_submodule(name)).detach()
        back = (
            bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            if bits == 4
            else layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        )
        assert found[name].mse == pytest.approx(float((back - weight).square().mean()), rel=1e-3)
        assert low < found[name].sqnr < high
        assert found[name].mean == pytest.approx(float(weight.mean()), abs=1e-6)
        assert found[name].bytes[0] == 4 * weight.numel() and found[name].bytes[1] < 2 * weight.numel()
    for name, reason in plan.kept.items():
        assert found[name].scheme == f"float32 ({reason})" and found[name].sqnr is None


def test_outliers_and_bins_by_hand():
    model = tiny_classifier(hidden=64, ffn=128)
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight.copy_(torch.tensor([1.0, -1.0]).repeat(weight.numel() // 2).view_as(weight))
        weight[0, 0] = weight[5, 5] = 100.0
    config = QuantizationConfig(bits=8)
    found = {each.name: each for each in fidelity(model, quantize(model, config), config).layers}
    layer = found["bert.encoder.layer.0.output.dense"]
    assert layer.outliers == 2 and sum(layer.histogram) == weight.numel() - 2 and len(layer.histogram) == BINS and SIGMAS == 6
