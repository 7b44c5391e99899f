"""What ``quantize`` does not take: each would end in a file that lacks something, or in an error of a library below."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_shrink.errors import MismatchError
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.quantize import quantize
from tests.tiny import tiny_classifier

BATCHES = [{"input_ids": torch.tensor([[2, 5, 8, 9, 3]])}]
CONFIGS = [
    QuantizationConfig(bits=8),
    QuantizationConfig(bits=4),
    QuantizationConfig(bits=16, dtype="bfloat16"),
    QuantizationConfig(bits="auto", budget={"bits_per_weight": 6.0}),
]


def refuses(model, says: str) -> None:
    for config in CONFIGS:
        with pytest.raises(MismatchError, match=says):
            quantize(model, config, BATCHES if config.bits == "auto" else None)


@pytest.mark.parametrize("how", ["add_adapter", "delete_adapter", "get_peft_model"])
def test_adapters_are_not_quantised_with_the_rest(how):
    """They became int8 codes or were lost in the file, and the answers were other ones."""
    model = tiny_classifier(hidden=64, ffn=128)
    config = LoraConfig(target_modules=["query", "key", "value"])
    if how == "get_peft_model":
        model = get_peft_model(model, config)
    else:
        model.add_adapter(config)
        if how == "delete_adapter":  # leaves its wrappers around the layers
            model.delete_adapter("default")
    refuses(model, "carries an adapter.*\\n.*put it on the result")


def test_merged_adapters_are_no_obstacle():
    model = get_peft_model(tiny_classifier(hidden=64, ffn=128), LoraConfig(target_modules=["query"])).merge_and_unload()
    assert quantize(model, CONFIGS[0]).bert.encoder.layer[0].attention.self.query.weight.dtype == torch.int8
