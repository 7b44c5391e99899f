"""The report of each layer against values worked out by hand and against bitsandbytes' own numbers."""

import math
from collections.abc import Sequence
from io import BytesIO, TextIOWrapper

import bitsandbytes as bnb
import pytest
import torch
from rich.console import Console

from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.fidelity import BINS, SIGMAS, Fidelity, LayerFidelity, errors, fidelity
from hf_shrink.quantization.fidelity_table import bars, short, shortened
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


def printed(layers: Sequence[LayerFidelity], width: int = 80, encoding: str = "utf-8") -> list[str]:
    console = Console(file=TextIOWrapper(BytesIO(), encoding=encoding), width=width)
    with console.capture() as caught:
        console.print(Fidelity(tuple(layers)).rich())
    return caught.get().splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_layer_can_be_told_apart_with_all_its_numbers_in_80_columns(encoding: str):
    """Cut names were all the same, and numbers without their exponent are no numbers."""
    name, counts = "roberta.encoder.layer.{}.attention.self.{}", (0,) * 20 + (1, 1, 40, 900, 900, 40, 1, 1) + (0,) * 20
    layers = [
        LayerFidelity(
            name.format(i, part), "uniform int8", -6.94e-6, 1.98e-2, 12, 3.36e-6, 20.71, (180_355_072, 45_105_152), counts
        )
        for i in (0, 11)
        for part in ("query", "key")
    ]
    title, header, *lines, below = printed(layers, encoding=encoding)
    assert title.strip() == "uniform int8" and header.split()[:3] == ["layer", "weights", "mean"] and "6 deviations" in below
    assert len({line.split()[0] for line in lines}) == 4 and all(len(line) <= 80 for line in (header, *lines, below))
    drawn = "██" if encoding == "utf-8" else "@@"
    assert lines[2].split() == ["r.e.l.11.a.self.query", drawn, "-7e-06", "2.0e-02", "12", "3.4e-06", "20.7", "180M", "45.1M"]
    assert printed(layers, 120, encoding)[2].split()[0] == name.format(0, "query")


def test_bars_and_short_numbers_by_hand():
    """A bar of the right height for the wrong bin says that a layer has outliers where it has none."""
    assert bars([8, 0, 0, 0] * 2 + [0] * 40) == "██" + " " * 10
    assert bars([0] * 44 + [800, 400, 100, 1]) == " " * 11 + "█"
    assert bars([0] * 40 + [800, 0, 0, 0, 1, 0, 0, 399]) == " " * 10 + "█▄" and bars([0] * 48) == " " * 12
    sizes = {0: "0", 768: "768", 999: "999", 1000: "1k", 16_384: "16.4k", 999_600: "1M", 2_359_296: "2.36M", 7e9: "7G"}
    assert {number: short(number) for number in sizes} == sizes
    assert shortened("bert.encoder.layer.10.output.dense", 19) == "b.e.l.10.o.dense" and shortened("a.bcdefgh", 5) == "~efgh"


def test_layers_that_were_not_touched_are_not_called_cast():
    """``bits: 16`` with embeddings alone leaves every layer as it is."""
    model, config = tiny_classifier(), QuantizationConfig(bits=16, embeddings="int8")
    found = {each.scheme for each in fidelity(model, quantize(model, config), config).layers}
    assert found == {"float32 (as it was)", "uniform int8, a scale a row (embedding)"}
    config = QuantizationConfig(bits=16, dtype="bfloat16")
    assert {each.scheme for each in fidelity(model, quantize(model, config), config).layers} == {"bfloat16 (cast)"}
