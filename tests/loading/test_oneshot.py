"""What `prune` and `quantize` return is a model like any other: its own save makes a folder that loads."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_shrink import PruningConfig, QuantizationConfig, prune, quantize
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
