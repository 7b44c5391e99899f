"""Pruned and quantised tensor by tensor while loading: the same model as in memory, and everything else refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
    BitsAndBytesConfig,
)

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, ShrinkError, prune, quantize
from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError, ResourceError
from hf_shrink.loading.save import save
from hf_shrink.pruning.config import fit_for_bits
from tests.loading.cuts import assert_same, noisy
from tests.tiny import ALL_FAMILIES, tiny_causal_lm, tiny_classifier, tiny_config

HEADS = PruningConfig(structure="heads", sparsity=0.5, round_to=1)
FFN = PruningConfig(structure="ffn", sparsity=0.5, round_to=8)
LAYERS = PruningConfig(structure="layers", sparsity=1 / 3)
HIDDEN = PruningConfig(structure="hidden", sparsity=0.25, round_to=8)
STRUCTURES = {
    "heads": [HEADS],
    "ffn": [FFN],
    "layers": [LAYERS],
    "hidden": [HIDDEN],
    "single": [PruningConfig(sparsity=0.5)],
    "random": [PruningConfig(sparsity=0.3, criterion="random")],
    "threshold": [PruningConfig(threshold=0.5, threshold_in="std")],
    "n_of_m": [PruningConfig(structure="n_of_m", pattern=(2, 4), criterion="magnitude_l2")],
    "block": [PruningConfig(structure="block", block=(4, 8), sparsity=0.5)],
    "global": [PruningConfig(structure="ffn", sparsity=0.5, allocation="global", criterion="magnitude_l2")],
    "one target": [PruningConfig(structure="heads", sparsity=0.5, round_to=1, target_modules=["0.attention.self.query"])],
    "hidden before layers": [HIDDEN, LAYERS],
    "all": [LAYERS, HIDDEN, HEADS, FFN],
    "zeros in less": [HIDDEN, LAYERS, FFN, PruningConfig(sparsity=0.5, target_modules=["query", "attention.output.dense"])],
    "nothing": [],
}
STORED = {
    "float": None,
    "int8": QuantizationConfig(bits=8),
    "nf4": QuantizationConfig(bits=4),
    "bf16": QuantizationConfig(bits=16, dtype="bfloat16"),
    "int8-bf16": QuantizationConfig(bits=8, dtype="bfloat16", threshold=0.0),
    "fp4-bf16": QuantizationConfig(bits=4, quant_type="fp4", dtype="bfloat16", double_quant=False, compute_dtype="bfloat16"),
}


def auto(family: str):
    return AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification


def folder_of(model, path: Path, **more) -> Path:
    noisy(model).save_pretrained(path, **more)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float folder of every family in several shards."""
    root = tmp_path_factory.mktemp("float")
    return {
        family: folder_of(tiny_classifier(family, layers=3, hidden=64, ffn=128), root / family, max_shard_size="60KB")
        for family in ALL_FAMILIES
    }


def in_memory(folder: Path, family: str, pruning, quantization, **how):
    """The second implementation: load everything, prune, quantise."""
    model = auto(family).from_pretrained(folder, **how)
    model = prune(model, fit_for_bits(pruning, quantization and quantization.bits)) if pruning else model
    return model if quantization is None else quantize(model, quantization)


def assert_equal(folder: Path, family: str, pruning, quantization, **how) -> None:
    asked = ShrinkConfig(pruning=pruning, quantization=quantization)
    ours = auto(family).from_pretrained(folder, quantization_config=asked, **how)
    theirs = in_memory(folder, family, pruning, quantization, **{k: v for k, v in how.items() if k != "device_map"})
    assert_same(theirs, ours, family, family)
    assert described(ours) == described(theirs)


def described(model) -> dict:
    noise = {"_name_or_path", "architectures", "transformers_version"}
    return {key: value for key, value in model.config.to_dict().items() if key not in noise}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("stored", ["float", "int8"])
def test_it_equals_loading_and_then_pruning_and_quantising(structure, stored, folders):
    """A slice along the wrong axis, or a score of other weights, gives a model that works and is another one."""
    if structure != "nothing" or stored != "float":
        assert_equal(folders["bert"], "bert", STRUCTURES[structure], STORED[stored])


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("structure", ["ffn", "all", "single"])
def test_in_every_precision(structure, stored, folders):
    pruning = [entry for entry in STRUCTURES[structure] if entry.structure != "ffn"]
    pruning += [PruningConfig(structure="ffn", sparsity=0.5)] if structure != "single" else []  # 64 of 128 where 4 bits follow
    assert_equal(folders["bert"], "bert", pruning, STORED[stored])


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("stored", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float", "fp4-bf16"))])
def test_of_every_family(family, stored, folders):
    four_bits = [LAYERS, PruningConfig(structure="ffn", sparsity=0.5)]
    pruning = four_bits if stored == "fp4-bf16" else [LAYERS, HIDDEN, HEADS, FFN]
    assert_equal(folders[family], family, pruning, STORED[stored], device_map="cpu")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_with_a_dtype(family, folders):
    """Scores of full weights choose others than those of the rounded ones that are loaded."""
    for stored in ("float", "int8", "nf4"):
        assert_equal(folders[family], family, [HEADS, FFN], STORED[stored], dtype=torch.bfloat16)


def test_words_of_both_sections_may_be_dicts(folders):
    given = {"quant_method": "hf_shrink", "pruning": [{"structure": "ffn", "sparsity": 0.5}], "quantization": {"bits": 8}}
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"], quantization_config=given)
    assert model.bert.encoder.layer[0].output.dense.weight.shape == (64, 64)
    same = ShrinkConfig(pruning={"structure": "ffn", "sparsity": 0.5}, quantization=QuantizationConfig(bits=8))
    assert ShrinkConfig.from_dict(same.to_dict()).to_dict() == same.to_dict() == ShrinkConfig.from_dict(given).to_dict()
    assert json.loads(json.dumps(same.to_dict()))["format_version"] == 1


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForTokenClassification, AutoModelForQuestionAnswering])
def test_other_heads_are_new_and_kept(kind, folders):
    """A head that no file has is quantised before it is initialised: an error deep in the kernels, or random int8."""
    asked = ShrinkConfig(pruning=[HEADS, FFN], quantization=STORED["int8"])
    model = kind.from_pretrained(folders["bert"], quantization_config=asked)
    whole = in_memory(folders["bert"], "bert", [HEADS, FFN], STORED["int8"])
    ours, theirs = model.base_model.state_dict(), whole.base_model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and len(ours) > 30
    assert {p.dtype for name, p in model.named_parameters() if not name.startswith("bert.") and kind is not AutoModel} <= {
        torch.float32
    }


def test_another_number_of_labels_with_and_without_a_cut_through_the_head(folders):
    for pruning in ([FFN], [HIDDEN]):
        model = AutoModelForSequenceClassification.from_pretrained(
            folders["bert"],
            num_labels=7,
            ignore_mismatched_sizes=True,
            quantization_config=ShrinkConfig(pruning=pruning, quantization=STORED["int8"]),
        )
        assert model.classifier.weight.shape == (7, 48 if pruning == [HIDDEN] else 64)
        assert model.classifier.weight.isfinite().all() and model.classifier.weight.std() < 0.1  # new, not the file's


@pytest.mark.parametrize(("family", "kind"), [("gpt2", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_tied_ends_stay_tied(family, kind, tmp_path):
    """B37: one end of the two quantised or cut alone is another model."""
    model = tiny_causal_lm("gpt2", layers=3, hidden=64, ffn=128) if family == "gpt2" else kind.from_config(tiny_config("t5"))
    folder_of(model, tmp_path)
    pruning = [PruningConfig(structure="hidden", sparsity=0.25), FFN]
    asked = ShrinkConfig(pruning=pruning, quantization=STORED["int8"])
    ours = kind.from_pretrained(tmp_path, quantization_config=asked)
    theirs = quantize(prune(kind.from_pretrained(tmp_path), pruning), STORED["int8"])
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight


def test_a_headless_folder_takes_a_new_head(tmp_path):
    folder_of(BertModel(tiny_config("bert", hidden=64, ffn=128), add_pooling_layer=False), tmp_path)
    asked = ShrinkConfig(pruning=[HIDDEN], quantization=STORED["int8"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=asked)
    assert model.bert.pooler.dense.weight.shape == (48, 48) and model.bert.pooler.dense.weight.dtype == torch.float32
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.int8


def test_a_layer_that_no_file_has_stays_precise_with_its_reason(tmp_path):
    """Its weights are drawn after the others are quantised, and cannot be drawn in 8 bits."""
    folder_of(tiny_classifier(hidden=64, ffn=128), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=ShrinkConfig(quantization=STORED["int8"])
    )
    assert model.bert.encoder.layer[1].output.dense.weight.dtype == torch.float32
    assert "encoder.layer.1.output.dense" in model.config.quantization_config.llm_int8_skip_modules
    with pytest.raises(RecipeError, match=r"layer\.1\.output\.dense\.weight is in no file"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=ShrinkConfig(pruning=[FFN]))


@pytest.mark.parametrize("stored", ["float", "int8", "nf4"])
@pytest.mark.parametrize("structure", ["ffn", "one target", "layers"])
def test_what_was_loaded_is_saved_and_loaded_bit_equal(structure, stored, folders, tmp_path):
    pruning = [PruningConfig(structure="ffn", sparsity=0.5, round_to=64)] if structure == "ffn" else STRUCTURES[structure]
    asked = ShrinkConfig(pruning=pruning, quantization=STORED[stored])
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"], quantization_config=asked)
    model.save_pretrained(tmp_path / "one")
    record = json.loads((tmp_path / "one" / "config.json").read_text()).get("quantization_config", {})
    assert "pruning" not in record and "quantization" not in record
    assert (record.get("quant_method") == "hf_shrink") == (structure == "one target")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert_same(model, again, "bert", "loaded again")
    again.eval()
    save(again, tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        one, two = (tmp_path / each / name for each in ("one", "two"))
        if name == "config.json":
            assert json.loads(one.read_text()) == json.loads(two.read_text())
        else:
            first, second = load_file(one), load_file(two)
            assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_config_that_asks_is_obeyed_and_forgotten(folders, tmp_path):
    """The folder of a float model may carry the request itself; what is saved afterwards describes what is stored."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    model.save_pretrained(tmp_path / "asking")
    path = tmp_path / "asking" / "config.json"
    asked = ShrinkConfig(pruning=[FFN], quantization=STORED["int8"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": asked.to_dict()}))
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "asking")
    assert_same(in_memory(folders["bert"], "bert", [FFN], STORED["int8"]), small, "bert", "asked by the folder")
    with pytest.raises(RecipeError, match=r"config\.json asks for pruning or quantization itself"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "asking", quantization_config=asked)


@pytest.fixture(scope="module")
def stored(folders, tmp_path_factory) -> dict[str, Path]:
    """Shapes alone, shapes with int8, int8 alone, nf4 alone."""
    root, found = tmp_path_factory.mktemp("stored"), {}
    for name, pruning, quantization in [
        ("shapes", "one target", "float"),
        ("shapes-int8", "one target", "int8"),
        ("int8", "nothing", "int8"),
        ("nf4", "nothing", "nf4"),
    ]:
        save(in_memory(folders["bert"], "bert", STRUCTURES[pruning], STORED[quantization]), root / name)
        found[name] = root / name
    return found


def load(folder: Path, given):
    return AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=given)


def test_a_pruned_folder_is_quantised_and_pruned_further_while_loading(stored):
    """transformers drops the argument with a warning where both are of one class."""
    pruned = AutoModelForSequenceClassification.from_pretrained(stored["shapes"])
    eight = quantize(pruned, STORED["int8"])
    assert_same(eight, load(stored["shapes"], ShrinkConfig(quantization=STORED["int8"])), "bert", "8 bits")
    assert_same(eight, load(stored["shapes"], BitsAndBytesConfig(load_in_8bit=True)), "bert", "by BitsAndBytesConfig")
    both = load(stored["shapes"], ShrinkConfig(pruning=[FFN], quantization=STORED["int8"]))
    assert_same(quantize(prune(pruned, FFN), STORED["int8"]), both, "bert", "pruned again")


@pytest.mark.parametrize("name", ["shapes-int8", "int8"])
def test_the_options_it_was_made_with_change_nothing(name, stored):
    """The same script, run again on its own result."""
    plain = AutoModelForSequenceClassification.from_pretrained(stored[name])
    for given in (ShrinkConfig(quantization=STORED["int8"]), ShrinkConfig()):
        assert_same(plain, load(stored[name], given), "bert", name)


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
    ],
)
def test_contradictions_are_refused(name, given, says, stored):
    """B31, B32: twice would lose more; one of the two would be ignored."""
    with pytest.raises(RecipeError, match=says):
        load(stored[name], given)


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
