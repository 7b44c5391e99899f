"""Embeddings in fewer bits once more: counted, trained, damaged or refused. What these prevent: a table that is rounded twice,
bytes counted for another file than is written, and codes that load as other numbers."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
)

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, dequantize, prune, quantize
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.inspection import inspect_model
from hf_shrink.loading.export import export_uniform
from hf_shrink.loading.save import save
from hf_shrink.loading.uniform import example_inputs, uniform
from hf_shrink.loading.verify import verify
from hf_shrink.quantization.embeddings import expect_training, recorded_dtype
from hf_shrink.quantization.mixed import expected_bytes, quantize_mixed
from hf_shrink.quantization.size import predicted_bytes
from hf_shrink.training.freeze import freeze
from tests.quantization.test_embeddings import SIZES, model_of
from tests.tiny import VOCABULARY, tiny_classifier


@pytest.mark.parametrize(
    "words", [{"bits": 8}, {"bits": 4, "embeddings": "int8"}, {"bits": 16, "dtype": "bfloat16"}], ids=["8", "4", "16"]
)
def test_tables_that_are_rounded_already_count_as_they_are_written(words, tmp_path: Path):
    """Counted as floats they made plans and budgets wrong by a fifth; trained since, they are floats whatever is on record."""
    tables_only = quantize(model_of("gpt2"), QuantizationConfig(bits=16, embeddings="int8"))
    config = QuantizationConfig(**words)
    small = quantize(tables_only, config)
    assert save(small, tmp_path / "small") == "plugin" and recorded_dtype(small) == "int8"
    size = (tmp_path / "small/model.safetensors").stat().st_size
    assert predicted_bytes(tables_only, config) == pytest.approx(size, rel=0.01)
    with torch.device("meta"):
        outline = model_of("gpt2")
    outline.config.embeddings_dtype = "int8"
    assert predicted_bytes(outline, config) == pytest.approx(size, rel=0.01)
    with torch.no_grad():
        tables_only.transformer.wte.weight.add_(1e-3)
    save(quantize(tables_only, config), tmp_path / "trained")
    trained = (tmp_path / "trained/model.safetensors").stat().st_size
    assert (trained == pytest.approx(size, rel=0.01)) == ("embeddings" in words)
    assert predicted_bytes(tables_only, config) == pytest.approx(trained, rel=0.01)
    save(tables_only, tmp_path / "plain")
    plain = (tmp_path / "plain/model.safetensors").stat().st_size
    assert predicted_bytes(tables_only, None) == pytest.approx(plain, rel=0.01)


def test_a_budget_counts_tables_that_are_rounded_already(tmp_path: Path):
    """What the floats would take was taken from the layers: fewer bits than fit."""
    model = quantize(model_of("gpt2"), QuantizationConfig(bits=16, embeddings="int8"))
    eight = predicted_bytes(model, QuantizationConfig(bits=8))
    assert eight + 8192 < predicted_bytes(model_of("gpt2"), QuantizationConfig(bits=8))
    config = QuantizationConfig(bits="auto", budget={"bytes": eight + 8192})
    assert expected_bytes(model, config) <= eight + 8192
    small = quantize_mixed(model, config, [{"input_ids": torch.randint(4, len(VOCABULARY), (4, 8))}])
    assert {layer.bits for layer in small.plan.layers} <= {8, 16}
    save(small.model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(eight, rel=0.01)


@pytest.mark.parametrize(("before", "then"), [("int8", "bfloat16"), ("bfloat16", "int8")])
def test_no_table_is_rounded_twice(before, then):
    """Both losses, under a record that tells of one; bfloat16 codes of int8 are larger as well."""
    model = quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings=before))
    for bits in (16, 8):
        with pytest.raises(RecipeError, match=f"rounded to {before} already"):
            quantize(model, QuantizationConfig(bits=bits, embeddings=then))
    assert recorded_dtype(quantize(model, QuantizationConfig(bits=8, embeddings=before))) == before
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(1e-3)  # trained since: floats like any other
    assert recorded_dtype(quantize(model, QuantizationConfig(bits=16, embeddings=then))) == then


@pytest.mark.parametrize("frozen", [False, True])
def test_a_plan_knows_that_training_makes_floats_of_them(frozen):
    with torch.device("meta"):
        model = model_of("gpt2")
    whole = predicted_bytes(model, None)
    model.config.embeddings_dtype = "int8"
    rounded = predicted_bytes(model, None)
    if frozen:
        freeze(model, ["wte", "wpe"], "optimization.freeze")
    expect_training(model)
    assert predicted_bytes(model, None) == (rounded if frozen else whole) and rounded < 0.95 * whole


def test_a_config_does_not_outlive_a_training(tmp_path: Path):
    """The model's own save_pretrained, which the Trainer calls, said int8 over float32 tables: they could not be quantised."""
    save(quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8")), tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    untouched = inspect_model(str(tmp_path / "small")).quantization
    with torch.no_grad():
        loaded.bert.embeddings.word_embeddings.weight.add_(1e-3)
    loaded.save_pretrained(tmp_path / "trained")
    words = json.loads((tmp_path / "trained/config.json").read_text())
    assert "quantization_config" not in words and "embeddings_dtype" not in words
    again = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "trained", quantization_config=ShrinkConfig(quantization=QuantizationConfig(bits=8))
    )
    assert again.is_loaded_in_8bit
    stale = json.loads((tmp_path / "small/config.json").read_text())
    (tmp_path / "trained/config.json").write_text(json.dumps(stale))  # as earlier releases wrote it
    assert untouched == "embeddings int8" and inspect_model(str(tmp_path / "trained")).quantization is None


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_a_checkpoint_holds_is_taken_back(family, tmp_path: Path):
    """With frozen embeddings checkpoints hold int8, too: a Trainer that went on, or back to its best, found other sizes."""
    small = quantize(model_of(family), QuantizationConfig(bits=16, embeddings="int8"))
    small.save_pretrained(tmp_path)
    held, state = load_file(tmp_path / "model.safetensors"), small.state_dict()
    assert sum(tensor.dtype == torch.int8 for tensor in held.values()) > 1
    for model in (copy.deepcopy(small), type(small).from_pretrained(tmp_path)):
        expected = {name: tensor.clone() for name, tensor in state.items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        assert not model.load_state_dict(held, strict=False).unexpected_keys
        assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
        model.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stored", ["float", "narrow", "8 bits"])
def test_an_argument_that_tells_of_a_file_is_refused(stored, tmp_path: Path):
    """config.json said int8, and not one table was rounded."""
    model = tiny_classifier("bert", hidden=64, ffn=128)
    if stored == "narrow":
        model = prune(model, PruningConfig(structure="ffn", sparsity=0.5, target_modules=["0.intermediate.dense"]))
    save(quantize(model, QuantizationConfig(bits=8)) if stored == "8 bits" else model, tmp_path)
    with pytest.raises(RecipeError, match=r"QuantizationConfig\(bits=16, embeddings='int8'\)"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=ShrinkConfig(embeddings="int8"))


def test_what_cannot_be_meant_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="loses digits"):
        QuantizationConfig(bits=16, dtype="float16", embeddings="bfloat16")
    with pytest.raises(RecipeError, match="embeddings: bfloat16 would be ignored with dtype: bfloat16"):
        QuantizationConfig(bits=16, dtype="bfloat16", embeddings="bfloat16")
    with pytest.raises(RecipeError, match="embeddings would be ignored with backend: onnx"):
        QuantizationConfig(backend="onnx", embeddings="int8")
    with pytest.raises(RecipeError, match="embeddings: bfloat16 or int8"):
        QuantizationConfig(bits=16)
    with pytest.raises(RecipeError, match="allowed: bfloat16, int8"):
        ShrinkConfig(embeddings="int4")
    with pytest.raises(RecipeError, match="looks nothing up in tables"):
        quantize(tiny_classifier("vit", **SIZES), QuantizationConfig(bits=8, embeddings="int8"))
    with pytest.raises(RecipeError, match="use int8 or keep"):
        quantize(model_of("bert").half(), QuantizationConfig(bits=8, embeddings="bfloat16"))
    save(quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8")), tmp_path / "tables")
    asked = ShrinkConfig(quantization=QuantizationConfig(bits=8))
    with pytest.raises(RecipeError, match="lie in int8 already"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "tables", quantization_config=asked)
    save(quantize(model_of("bert"), QuantizationConfig(bits=8, embeddings="int8")), tmp_path / "both")
    same = ShrinkConfig(quantization=QuantizationConfig(bits=8, embeddings="int8"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "both", quantization_config=same).is_loaded_in_8bit
    other = ShrinkConfig(quantization=QuantizationConfig(bits=8, embeddings="bfloat16"))
    with pytest.raises(RecipeError, match="embeddings 'int8', not 'bfloat16'"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "both", quantization_config=other)


def test_a_damaged_table_does_not_load(tmp_path: Path):
    small = quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8"))
    save(small, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError):
        verify(tmp_path, small, example_inputs(small))


@pytest.mark.parametrize("damage", ["uint8", "int16", "nan", "negative"])
def test_codes_of_another_kind_do_not_load(damage, tmp_path: Path):
    """Bytes without a sign, or a scale that is none, loaded as other numbers without a word."""
    small = quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8"))
    save(small, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    if damage in ("nan", "negative"):
        scale = torch.tensor([float("nan") if damage == "nan" else -1.0], dtype=torch.bfloat16)
        weights[name][0, -2:] = scale.view(torch.int8)
    else:
        weights[name] = weights[name].view(torch.uint8) if damage == "uint8" else weights[name].to(torch.int16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((IntegrityError, RuntimeError)):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(IntegrityError):
        verify(tmp_path, small, example_inputs(small))


def test_tables_that_plain_transformers_cannot_read_are_not_made_uniform(tmp_path: Path):
    small = quantize(model_of("bert"), QuantizationConfig(bits=16, embeddings="int8"))
    save(small, tmp_path / "small")
    with pytest.raises(MismatchError, match=r"hf_shrink\.dequantize"):
        export_uniform(tmp_path / "small", tmp_path / "stock")
    assert not (tmp_path / "stock").exists()
    assert uniform(dequantize(small))[1].max_difference == 0.0
