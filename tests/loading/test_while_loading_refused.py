"""What pruning and quantising while loading refuses. What these prevent: an option that is ignored, a model that was cut from
damaged weights, and a load that fails after it has taken the memory."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, ShrinkError, prune
from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError, ResourceError
from tests.loading.asked import FFN, STORED, load
from tests.tiny import tiny_classifier

MIXED = ShrinkConfig(
    bitsandbytes={"load_in_4bit": True}, eight_bits={"layers": ["encoder.layer.0.output.dense"], "threshold": 6.0}
)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("int8", ShrinkConfig(quantization=STORED["nf4"]), "quantised already .*8 bits; bits 8, not 4"),
        ("int8", ShrinkConfig(quantization=QuantizationConfig(threshold=0.0)), "threshold 6.0, not 0.0"),
        ("nf4", ShrinkConfig(quantization=QuantizationConfig(bits=4, quant_type="fp4")), "quant_type 'nf4', not 'fp4'"),
        ("int8", ShrinkConfig(pruning=[FFN]), "pruning: the model is quantised already"),
        ("shapes-int8", ShrinkConfig(pruning=[FFN]), "pruning: the model is quantised already"),
        ("shapes-int8", ShrinkConfig(quantization=STORED["nf4"]), "quantised already"),
        ("shapes-int8", BitsAndBytesConfig(load_in_4bit=True), "quantised already"),
        ("shapes-int8", BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=1.0), "quantised already"),
        ("shapes", ShrinkConfig({"encoder.layer.0.output.dense": (8, 64)}), "shapes and head_dim are read from the folder"),
        ("shapes", BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True), "llm_int8_has_fp16_weight"),
        ("shapes", MIXED, "eight_bits says how a stored folder lies"),
        ("float", MIXED, "eight_bits says how a stored folder lies.*\n.*bits='auto'"),
        ("float", ShrinkConfig(bitsandbytes={"load_in_8bit": True, "llm_int8_has_fp16_weight": True}), "has_fp16_weight"),
    ],
)
def test_contradictions_are_refused(name, given, says, stored, folders):
    """B31, B32: twice would lose more; one of the two would be ignored."""
    with pytest.raises(RecipeError, match=says):
        load({**stored, "float": folders["bert"]}[name], given)


@pytest.mark.parametrize("bits", [8, 16])
def test_two_words_for_the_dtype_are_refused(bits, folders):
    """The caller's was ignored; a word that agrees, or the folder's own, is no conflict."""
    asked = ShrinkConfig(quantization=QuantizationConfig(bits=bits, dtype="bfloat16"))
    with pytest.raises(RecipeError, match=r"dtype torch\.float16 and quantization\.dtype torch\.bfloat16"):
        load(folders["bert"], asked, dtype=torch.float16)
    for agrees in ({}, {"dtype": "auto"}, {"dtype": torch.bfloat16}):
        assert load(folders["bert"], asked, **agrees).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pruning": [{"structure": "ffn", "criterion": "taylor", "sparsity": 0.5}]}, "taylor.*\n.*prune\\(model, config, cal"),
        ({"pruning": [{"criterion": "wanda", "sparsity": 0.5}]}, "wanda cannot be used while loading"),
        ({"pruning": [PruningConfig(criterion=lambda weight, stats: weight, sparsity=0.5)]}, "cannot be used while loading"),
        ({"pruning": [{"structure": "layers", "criterion": "block_influence", "sparsity": 0.5}]}, "block_influence"),
        ({"pruning": [{"structure": "ffn", "sparsity": 0.5, "when": "before", "reconstruct": True}]}, "reconstruct"),
        ({"pruning": [{"sparsity": 0.5, "allocation": "global"}]}, "global compares all weights at once"),
        ({"pruning": [{"structure": "ffn", "sparsity": 0.5, "allocation": "sensitivity"}]}, "sensitivity needs fractions"),
        ({"pruning": [{"sparsity": 0.5, "end_step": 5}]}, "end_step would be ignored"),
        ({"pruning": [{"structure": "vocabulary", "sparsity": 0.5}]}, "vocabulary"),
        ({"pruning": [{"structure": "ffn", "sparcity": 0.5}]}, "Did you mean 'sparsity'"),
        ({"pruning": "ffn"}, "must be a PruningConfig or a list"),
        ({"pruning": [3]}, "must be a PruningConfig or a dict"),
        ({"quantization": 8}, "must be a QuantizationConfig or a dict"),
        ({"quantization": {"backend": "onnx"}}, "call export_onnx"),
        ({"quantization": {"bits": 8, "quant_typ": "nf4"}}, "Did you mean 'quant_type'"),
        ({"quantization": {"bits": 4, "quant_type": "zz9"}}, "nf4"),
        ({"quantisation": {}}, "Did you mean 'quantization'"),
        ({"quantization": {"bits": 8}, "bitsandbytes": {"load_in_8bit": True}}, "both say how weights are stored"),
    ],
)
def test_what_cannot_be_done_while_loading_is_refused_with_the_way_out(given, says):
    """Refused when the config is made, before anything is read."""
    with pytest.raises(RecipeError, match=says):
        ShrinkConfig(**given)


@pytest.mark.parametrize("option", [{"bnb_4bit_quant_typ": "nf4"}, {"bnb_4bit_quant_type": "zz9"}, {"load_in_8bit": True}])
def test_b33_options_of_bitsandbytes_are_checked(option):
    """B32, B33: a typo gives fp4 where nf4 was meant; an unknown type fails at the end of loading."""
    with pytest.raises(RecipeError):
        ShrinkConfig(bitsandbytes={"load_in_4bit": True, **option})


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "6", True])
def test_b33_thresholds_are_numbers(value):
    with pytest.raises(RecipeError, match="llm_int8_threshold"):
        ShrinkConfig(bitsandbytes={"load_in_8bit": True, "llm_int8_threshold": value})


@pytest.mark.parametrize("value", ["int8", "__class__", "bool"])
def test_b33_compute_dtypes_are_floats(value):
    with pytest.raises(RecipeError, match="bnb_4bit_compute_dtype"):
        ShrinkConfig(bitsandbytes={"load_in_4bit": True, "bnb_4bit_compute_dtype": value})


def test_a_state_dict_cannot_be_pruned_while_loading(folders):
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    with pytest.raises(RecipeError, match="state dict is in memory already"):
        type(model).from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), quantization_config=ShrinkConfig(pruning=[FFN])
        )


@pytest.mark.parametrize("given", [{"pruning": [FFN]}, {"quantization": STORED["int8"]}], ids=["pruning", "quantization"])
def test_weights_that_are_no_numbers_are_refused(given, folders, tmp_path):
    """B27: quantising turns a NaN into a number like any other."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match=r"layer\.0\.output\.dense\.weight"):
        load(tmp_path, ShrinkConfig(**given))


def test_weights_too_large_for_eight_bits_are_refused(folders, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = 70000.0
    model.save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match="65504"):
        load(tmp_path, ShrinkConfig(quantization=STORED["int8"]))


def test_a_damaged_file_is_named(folders, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match=r"model\.safetensors: damaged"):
        load(tmp_path, ShrinkConfig(pruning=[FFN]))


def test_structures_are_refused_as_in_memory(folders):
    for pruning, kind in [
        ([PruningConfig(sparsity=0.5, target_modules=["quary"])], RecipeError),
        ([PruningConfig(structure="heads", sparsity=0.9, round_to=1)], RecipeError),
        ([PruningConfig(structure="n_of_m", pattern=(3, 5))], RecipeError),
        ([FFN, FFN], RecipeError),
    ]:
        with pytest.raises(kind) as in_memory_says:
            prune(AutoModelForSequenceClassification.from_pretrained(folders["bert"]), pruning)
        with pytest.raises(kind) as loading_says:
            load(folders["bert"], ShrinkConfig(pruning=pruning))
        assert str(in_memory_says.value) == str(loading_says.value)


def test_b36_no_bitsandbytes_says_how_to_get_it(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        load(folders["bert"], ShrinkConfig(quantization=STORED["int8"]))


def test_errors_are_of_the_one_kind():
    for kind in (IntegrityError, MismatchError, NonFiniteError, RecipeError, ResourceError):
        assert issubclass(kind, ShrinkError)


def test_a_config_that_asks_for_nothing_is_refused(tmp_path):
    """It did nothing, and what was saved afterwards needed hf_shrink for that."""
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="asks for nothing; give it pruning or quantization"):
        load(tmp_path, ShrinkConfig())


@pytest.mark.parametrize("name", ["shapes", "int8"])
def test_a_config_that_asks_for_nothing_leaves_what_a_folder_says(name, stored):
    load(stored[name], ShrinkConfig())


@pytest.mark.parametrize("given", [{"pruning": [FFN]}, {"quantization": {"bits": 8}}], ids=str)
def test_pickled_weights_are_refused_with_the_way_out(given, tmp_path):
    tiny_classifier(hidden=64, ffn=128).save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"pytorch_model\.bin: .* others can run code") as raised:
        load(tmp_path, ShrinkConfig(**given))
    assert "save_pretrained()" in str(raised.value)
