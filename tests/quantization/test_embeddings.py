"""Embeddings in fewer bits: what lies in the file, what is computed with, and that both are the same numbers."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5ForConditionalGeneration,
)

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, prune, quantize
from hf_shrink.loading.save import save
from hf_shrink.loading.uniform import example_inputs
from hf_shrink.loading.verify import verify
from hf_shrink.quantization.embeddings import pack, recorded_dtype, tables, unpack
from hf_shrink.quantization.fidelity import fidelity
from hf_shrink.quantization.mixed import quantize_mixed
from hf_shrink.quantization.size import bytes_with, predicted_bytes
from tests.tiny import VOCABULARY, tiny_causal_lm, tiny_classifier, tiny_config

SIZES = {"hidden": 64, "ffn": 128}
AUTO = {
    "bert": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
}


def model_of(family: str):
    """GPT-2's and T5's tables are their output layers too; Llama's are tied here."""
    if family == "bert":
        return tiny_classifier("bert", **SIZES)
    if family == "t5":
        torch.manual_seed(0)
        return T5ForConditionalGeneration(tiny_config("t5", **SIZES)).eval()
    return tiny_causal_lm(family, **SIZES, tie_word_embeddings=True)


def test_a_row_by_hand():
    """Codes by 127 of the largest magnitude; a row of zeros has no scale to divide by."""
    table = torch.tensor([[1.0, -0.5, 0.25, 0.0], [0.0] * 4, [254.0, 2.0, -1.0, 3.0]])
    packed = pack(table)
    assert packed.dtype == torch.int8 and packed.shape == (3, 6)
    assert packed[:, :4].tolist() == [[127, -64, 32, 0], [0, 0, 0, 0], [127, 1, 0, 2]]  # halves go to the even code
    scales = packed[:, 4:].contiguous().view(torch.bfloat16).flatten()
    assert scales.tolist() == [1.0, 0.0, 254.0]
    back = unpack(packed, torch.float32)
    assert back[2].tolist() == [254.0, 2.0, 0.0, 4.0] and torch.equal(back[0, :2], torch.tensor([127, -64]) / torch.tensor(127))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 50.0])
def test_what_was_stored_once_is_stored_again_as_the_same_bytes(dtype, spread):
    """A scale that is found anew from rounded numbers moves a little each time, and the model with it."""
    table = (spread * torch.randn(3000, 48, generator=torch.Generator().manual_seed(0))).to(dtype)
    packed = pack(table)
    again = unpack(packed, dtype)
    assert torch.equal(pack(again), packed)
    step = table.float().abs().amax(dim=1, keepdim=True) / 127
    roundings = torch.finfo(dtype).eps * table.float().abs()
    assert (
        (again.float() - table.float()).abs() <= 0.76 * step + roundings
    ).all()  # half a code, a quarter for the scale's 8 bits
    assert len(packed.unique(dim=0)) > 2000


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("bert", {"bits": 8, "embeddings": "bfloat16"}),
        pytest.param("bert", {"bits": 4, "embeddings": "bfloat16"}, marks=pytest.mark.slow),
        ("bert", {"bits": 16, "embeddings": "bfloat16"}),
        ("gpt2", {"bits": 4, "embeddings": "int8"}),
        pytest.param("gpt2", {"bits": 16, "dtype": "bfloat16", "embeddings": "int8"}, marks=pytest.mark.slow),
        pytest.param("llama", {"bits": 8, "embeddings": "bfloat16"}, marks=pytest.mark.slow),
        ("llama", {"bits": 4, "embeddings": "int8", "dtype": "bfloat16", "compute_dtype": "bfloat16"}),
        ("t5", {"bits": 4, "embeddings": "int8"}),
        pytest.param("t5", {"bits": 16, "embeddings": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param("t5", {"bits": 8, "embeddings": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param("llama", {"bits": 16, "embeddings": "int8"}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"bits": 8, "embeddings": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_saved_loaded_and_saved_again(family, words, tmp_path: Path):
    """bitsandbytes' loading takes over the precision of the file: the next layer would fail, or round in bfloat16."""
    model, config = model_of(family), QuantizationConfig(**words)
    before = copy.deepcopy(model.state_dict())
    small = quantize(model, config)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    small.save_pretrained(tmp_path / "own")
    stock = words["bits"] == 16 and words["embeddings"] == "bfloat16"
    assert save(small, tmp_path / "small") == ("stock" if stock else "plugin")
    stored = load_file(tmp_path / "small/model.safetensors")
    kind = {"int8": torch.int8, "bfloat16": torch.bfloat16}[config.embeddings]
    assert tables(model) and {stored[name].dtype for name in tables(model)} == {kind}
    assert verify(tmp_path / "small", small, example_inputs(small)).max_difference == 0.0
    loaded = AUTO[family].from_pretrained(tmp_path / "small")
    assert {table.dtype for table in tables(loaded).values()} == {getattr(torch, config.dtype or "float32")}
    save(loaded, tmp_path / "again")
    asked = ShrinkConfig(quantization=config)
    model.save_pretrained(tmp_path / "float")
    loading = AUTO[family].from_pretrained(tmp_path / "float", quantization_config=asked)
    loading.save_pretrained(tmp_path / "loading")
    for other in ("own", "again", "loading"):
        theirs = load_file(tmp_path / other / "model.safetensors")
        assert theirs.keys() == stored.keys(), other
        assert all(theirs[n].dtype == t.dtype and torch.equal(theirs[n], t) for n, t in stored.items()), other
    size = (tmp_path / "small/model.safetensors").stat().st_size
    with torch.device("meta"):
        assert predicted_bytes(model_of(family), config) == pytest.approx(size, rel=0.01)
    assert predicted_bytes(loaded, None) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_tied_output_layer_computes_with_the_stored_numbers(family):
    """Two copies, one rounded and one not, would make another model after loading than before saving."""
    model = model_of(family)
    small = quantize(model, QuantizationConfig(bits=16, embeddings="int8"))
    table, head = small.get_input_embeddings().weight, small.get_output_embeddings().weight
    assert table is head and torch.equal(table, unpack(pack(model.get_input_embeddings().weight), torch.float32))
    assert not torch.equal(table, model.get_input_embeddings().weight)
    model.get_input_embeddings().weight.data.copy_(table)
    for name, other in tables(model).items():
        other.data.copy_(small.get_parameter(name))
    inputs = example_inputs(model)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, small(**inputs).logits)


def test_an_untied_output_layer_keeps_its_digits():
    model = tiny_causal_lm("llama", **SIZES, tie_word_embeddings=False)
    small = quantize(model, QuantizationConfig(bits=16, embeddings="int8"))
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_by_budget_and_after_pruning(tmp_path: Path):
    """The budget counts the embeddings as they lie in the file; layers of other widths go the same way."""
    model = prune(
        tiny_classifier("bert", hidden=64, ffn=256),
        PruningConfig(structure="ffn", sparsity=0.25, target_modules=["0.intermediate.dense"]),
    )
    batches = [{"input_ids": torch.randint(4, len(VOCABULARY), (4, 8))}]
    config = QuantizationConfig(bits="auto", budget={"bits_per_weight": 7.0}, embeddings="int8")
    mixed = quantize_mixed(model, config, batches)
    assert save(mixed.model, tmp_path) == "plugin" and recorded_dtype(mixed.model) == "int8"
    size = (tmp_path / "model.safetensors").stat().st_size
    bits = {layer.name: layer.bits for layer in mixed.plan.layers}
    assert {4, 8} <= {*bits.values()} and bytes_with(model, config, bits) == pytest.approx(size, rel=0.01)
    assert verify(tmp_path, mixed.model, example_inputs(mixed.model)).max_difference == 0.0
    record = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert record["embeddings"] == "int8" and record["eight_bits"] and record["shapes"]
    whole = quantize_mixed(
        model, config.model_copy(update={"budget": config.budget.model_copy(update={"bits_per_weight": 32.0})}), batches
    )
    assert whole.model is not model and not hasattr(model.config, "embeddings_dtype")


def test_without_its_head_and_back_to_floats(tmp_path: Path):
    model = model_of("gpt2")
    small = quantize(model, QuantizationConfig(bits=8, embeddings="int8"))
    save(small, tmp_path / "small")
    headless = AutoModel.from_pretrained(tmp_path / "small")
    assert torch.equal(headless.wte.weight, small.transformer.wte.weight)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "small").dequantize()
    back.save_pretrained(tmp_path / "float")
    stored = load_file(tmp_path / "float/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.equal(stored["transformer.wte.weight"], small.transformer.wte.weight)
    assert "quantization_config" not in json.loads((tmp_path / "float/config.json").read_text())


def test_what_was_trained_since_is_not_rounded_again(tmp_path: Path):
    """A record that outlives its numbers would take the digits of a training away at each save."""
    small = quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8"))
    with torch.no_grad():
        small.bert.embeddings.word_embeddings.weight.add_(1e-3)
    kept = small.bert.embeddings.word_embeddings.weight.clone()
    assert save(small, tmp_path) == "stock"
    assert torch.equal(load_file(tmp_path / "model.safetensors")["bert.embeddings.word_embeddings.weight"], kept)
    assert "embeddings_dtype" not in json.loads((tmp_path / "config.json").read_text())


def test_tokens_that_were_added_make_floats_of_a_loaded_table(tmp_path: Path):
    """New rows were rounded by nobody: as int8 they would lose digits, and under a record of int8 floats would not load."""
    quantize(model_of("bert"), QuantizationConfig(bits=8, embeddings="int8")).save_pretrained(tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    loaded.resize_token_embeddings(loaded.config.vocab_size + 3)
    loaded.save_pretrained(tmp_path / "more")
    assert "embeddings_dtype" not in json.loads((tmp_path / "more/config.json").read_text())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "more").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())


def test_the_report_tells_what_each_table_lost():
    model = model_of("bert")
    config = QuantizationConfig(bits=8, embeddings="int8")
    small = quantize(model, config)
    found = {layer.name: layer for layer in fidelity(model, small, config).layers}
    words = found["bert.embeddings.word_embeddings"]
    rows, features = model.bert.embeddings.word_embeddings.weight.shape
    assert words.bytes == (4 * rows * features, rows * (features + 2)) and "int8" in words.scheme
    assert words.sqnr is not None and 35 < words.sqnr < 50  # about 6 dB a bit, less what the largest of a row costs
    assert "bert.embeddings.word_embeddings" not in {
        layer.name for layer in fidelity(model, quantize(model, QuantizationConfig(bits=8)), QuantizationConfig(bits=8)).layers
    }
