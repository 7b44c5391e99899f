"""Back to floats from folders that plain transformers loads, where its own way leaves GPT-2 with layers of another kind."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GPTQConfig,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from hf_shrink import PruningConfig, QuantizationConfig, dequantize, prune, quantize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.loading.save import save
from hf_shrink.quantization.bitsandbytes import restored, stored_bits
from hf_shrink.targets import oriented
from hf_shrink.training.recovery import with_adapters
from tests.loading.cuts import assert_same, first_output, noisy
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_config

SLOW = pytest.mark.slow


@pytest.mark.parametrize("family", ["gpt2", pytest.param("bert", marks=SLOW), pytest.param("llama", marks=SLOW)])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=SLOW)])
def test_floats_are_what_was_multiplied_by(family, bits, dtype, tmp_path: Path):
    model = noisy(tiny_classifier(family, hidden=64, ffn=128))
    assert save(quantize(model, QuantizationConfig(bits=bits)), tmp_path / "small") == "stock"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    first_output(loaded, family)  # 8-bit layers hold their scales elsewhere from here on
    weights = {name: restored(loaded.get_submodule(name)).clone() for name in stored_bits(loaded)}
    back = dequantize(loaded, dtype=dtype)
    assert weights and stored_bits(loaded).keys() == weights.keys()
    kind = getattr(torch, dtype or "float32")
    for name, weight in weights.items():
        layer = back.get_submodule(name)
        assert isinstance(layer, Conv1D) == (family == "gpt2") and layer.weight.dtype == kind
        assert torch.equal(oriented(layer), weight.to(kind)), name
        assert torch.equal(restored(loaded.get_submodule(name)), weight), "the original changed"
    assert {p.dtype for p in back.parameters()} == {kind} and not back.training
    assert save(back, tmp_path / "float") == "stock"
    for name, own in (("own", back), ("cut", prune(back, PruningConfig(sparsity=0.5)))):  # a Trainer saves that way
        own.save_pretrained(tmp_path / name)
        assert_same(own, AutoModelForSequenceClassification.from_pretrained(tmp_path / name), family, name)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "float")
    assert_same(back, again, family, family)
    assert not hasattr(again.config, "quantization_config")
    small = quantize(again, QuantizationConfig(bits=bits))  # it is a float model like any other
    assert stored_bits(small).keys() == weights.keys()


def test_a_model_that_transformers_itself_quantised(tmp_path: Path):
    model = noisy(tiny_causal_lm("gpt2", hidden=64, ffn=128))
    model.save_pretrained(tmp_path)
    theirs = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=theirs, dtype=torch.float32)
    back = dequantize(loaded)
    square = "transformer.h.0.attn.c_proj"
    error = (back.get_submodule(square).weight - model.get_submodule(square).weight).norm()
    assert 0 < error < 0.02 * model.get_submodule(square).weight.norm()  # transposed it would be as large as the weight
    assert back.lm_head.weight is back.transformer.wte.weight


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("t5", "float16")])
def test_tables_alone_go_back_in_the_precision_that_loading_gives(family, dtype, tmp_path: Path):
    """Rotary tables that are worked out at loading, and what T5 keeps in float32, would be other numbers after a reload."""
    model = T5ForConditionalGeneration(tiny_config("t5")).eval() if family == "t5" else tiny_causal_lm("llama")
    back = dequantize(quantize(model, QuantizationConfig(bits=16, embeddings="int8")), dtype=dtype)
    assert save(back, tmp_path) == "stock"
    again = type(model).from_pretrained(tmp_path)
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (back, again))
    assert ours.keys() == theirs.keys() and {t.dtype for t in ours.values()} == {torch.float32, getattr(torch, dtype)}
    assert all(t.dtype == theirs[name].dtype and torch.equal(t, theirs[name]) for name, t in ours.items())
    assert back.dtype == again.dtype == getattr(torch, dtype)


def test_what_has_no_way_back_is_refused():
    model = tiny_classifier("bert", hidden=64, ffn=128)
    with pytest.raises(RecipeError, match="no layer is quantised"):
        dequantize(model)
    small = quantize(model, QuantizationConfig(bits=4))
    adapted = with_adapters(small, rank=2)
    with pytest.raises(MismatchError, match="adapter"):
        dequantize(adapted.get_base_model())
    left = tiny_classifier("bert", hidden=64, ffn=128)
    left.add_adapter(LoraConfig(target_modules=["query"]))
    left.delete_adapter("default")
    with pytest.raises(MismatchError, match="adapter"):
        dequantize(left)
    model.config.quantization_config = GPTQConfig(bits=4).to_dict()
    with pytest.raises(MismatchError, match="quantised by gptq"):
        dequantize(model)
    tables = quantize(tiny_classifier("bert"), QuantizationConfig(bits=16, embeddings="int8"))
    back = dequantize(tables)
    assert not hasattr(back.config, "embeddings_dtype") and not hasattr(back.config, "quantization_config")
    assert torch.equal(back.bert.embeddings.word_embeddings.weight, tables.bert.embeddings.word_embeddings.weight)
