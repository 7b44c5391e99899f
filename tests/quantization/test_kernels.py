"""The kernels themselves, called for every width: a plan that lets a wrong one through gives plausible nonsense."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch import nn

from hf_shrink.quantization.bitsandbytes import restored, unfit
from hf_shrink.quantization.config import QuantizationConfig

WIDTHS = range(16, 1025, 16)
TOLERANCE = 1e-3
"""Of the product's norm; wrong kernels are off by a tenth and more."""


FORMATS = {
    "int8-0": QuantizationConfig(bits=8, threshold=0.0),
    "int8": QuantizationConfig(bits=8),
    "nf4-single": QuantizationConfig(bits=4, double_quant=False),
    "nf4": QuantizationConfig(bits=4),
    "fp4-single": QuantizationConfig(bits=4, quant_type="fp4", double_quant=False),
    "fp4": QuantizationConfig(bits=4, quant_type="fp4"),
}


def relative_error(config: QuantizationConfig, width: int) -> tuple[float, float]:
    """``(of the weight, of the product)``: the kernel's dequantised weight against the format's definition, worked out here."""
    torch.manual_seed(width)
    weight, inputs = torch.randn(32, width), torch.randn(4, width)
    if config.bits == 8:
        inputs[0, 0] = 8.0  # above the threshold of 6.0
        layer = bnb.nn.Linear8bitLt(width, 32, bias=False, has_fp16_weights=False, threshold=config.threshold)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")
        reference = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    else:
        words = {"quant_type": config.quant_type, "compress_statistics": config.double_quant}
        layer = bnb.nn.Linear4bit(width, 32, bias=False, **words)
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, **words).to("cpu")
        layer.support_avx512bf16_for_cpu = False
        state, packed = layer.weight.quant_state, layer.weight.data.flatten()
        codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
        scales = state.absmax
        if config.double_quant:  # 8-bit codes of the scales, in blocks with a scale of their own, around a mean
            outer = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(scales)]
            scales = state.state2.code[scales.long()] * outer + state.offset
        reference = (state.code[codes].view(-1, 64) * scales[:, None]).view(32, width)
    layer.eval()
    with torch.no_grad():
        product = layer(inputs)
    back = restored(layer)
    expected = inputs @ reference.T
    of_product = (product - expected).norm() / expected.norm()
    return float((back - reference).norm() / reference.norm()), float(of_product)


@pytest.mark.parametrize("name", FORMATS)
def test_every_width_that_the_plan_lets_through_is_right(name, record_property):
    config, bits = FORMATS[name], FORMATS[name].bits
    fits = [width for width in WIDTHS if unfit(nn.Linear(width, 32), config) is None]
    assert fits == (list(WIDTHS) if bits == 8 else [width for width in WIDTHS if width % 64 == 0])
    found = {width: relative_error(config, width) for width in fits}
    record_property("code_path", f"{name}, {'AVX512-BF16' if has_avx512bf16() else 'without AVX512-BF16'}")
    limit = 0.02 if bits == 8 else TOLERANCE  # int8 also rounds what comes in, to 8 bits a row
    assert not {width: error for width, error in found.items() if error[0] > TOLERANCE or error[1] > limit}


def test_without_the_plan_other_widths_are_wrong_where_avx512_is(record_property):
    """What the plan is for. Where this passes without it on such a machine, upstream has repaired the kernel."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip(f"the faulty kernel is for AVX512; this machine has {torch.backends.cpu.get_cpu_capability()}")
    wrong = [width for width in WIDTHS if width % 64 and max(relative_error(FORMATS["nf4-single"], width)) > TOLERANCE]
    record_property("wrong_widths", str(wrong))
    assert wrong, "no width is wrong any more: the plan keeps layers for nothing"
