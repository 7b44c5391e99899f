"""Back to floats: the numbers that were multiplied by, in layers of the kind that they were."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, prune, quantize
from hf_shrink.loading.save import save
from hf_shrink.quantization.bitsandbytes import restored
from hf_shrink.targets import oriented
from tests.loading.cuts import first_output, noisy
from tests.tiny import tiny_classifier

ONE = {"bert": "0.attention.self.query", "gpt2": "0.attn.c_attn", "llama": "0.self_attn.q_proj"}


@pytest.mark.parametrize("family", ONE)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_loaded_model_comes_back_as_what_it_computed_with(family, bits, dtype, tmp_path: Path):
    """transformers leaves nn.Linear in place of GPT-2's Conv1D: saved, its square weights come back transposed."""
    model = noisy(tiny_classifier(family, hidden=128, ffn=128))
    heads = PruningConfig(structure="heads", sparsity=0.5, round_to=1, target_modules=[ONE[family]])
    small = quantize(prune(model, heads), QuantizationConfig(bits=bits))
    assert save(small, tmp_path / "small") == "plugin"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    weights = {
        n: restored(m) for n, m in loaded.named_modules() if type(m).__name__.startswith("Linear") and hasattr(m, "source_cls")
    }
    assert weights
    loaded.save_pretrained(tmp_path / "again")  # makes config.dtype text, on which transformers' own fails
    back = loaded.dequantize(dtype) if dtype is not None else loaded.dequantize()
    for name, weight in weights.items():
        layer = back.get_submodule(name)
        assert isinstance(layer, Conv1D) == (family == "gpt2")
        assert torch.equal(oriented(layer), weight.to(dtype or torch.float32))
    assert {p.dtype for p in back.parameters()} == {dtype or torch.float32}
    back.save_pretrained(tmp_path / "float")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "float")
    assert torch.equal(first_output(again, family), first_output(back, family))
    twice = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "float", quantization_config=ShrinkConfig(quantization=QuantizationConfig(bits=bits))
    )
    assert twice.num_parameters() > 0
