"""Pruned and quantised tensor by tensor while loading: the same model as in memory, and everything else refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
    BitsAndBytesConfig,
)

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, dequantize, prune, quantize
from hf_shrink.errors import RecipeError
from hf_shrink.loading.merging import from_bitsandbytes
from hf_shrink.loading.save import save
from tests.loading.asked import FFN, HEADS, HIDDEN, LAYERS, STORED, STRUCTURES, auto, folder_of, in_memory, load
from tests.loading.cuts import assert_same
from tests.tiny import ALL_FAMILIES, tiny_causal_lm, tiny_classifier, tiny_config


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


OPTIONS = {
    "int8": {"load_in_8bit": True},
    "fp4-bf16": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_bitsandbytes_follow_the_plan_as_ours_do(name, folders, stored, tmp_path):
    """Pooler and head were quantised, too, a new head before it had weights, and plain transformers could not load the file."""
    asked, words = ShrinkConfig(bitsandbytes=OPTIONS[name]), from_bitsandbytes(OPTIONS[name])
    for folder in (folders["bert"], stored["shapes"]):
        ours = load(folder, asked)
        assert_same(load(folder, ShrinkConfig(quantization=words)), ours, "bert", name)
        assert ours.config.kept_in_high_precision.items() >= {"bert.pooler.dense": "pooler", "classifier": "task head"}.items()
    load(folders["bert"], asked).save_pretrained(tmp_path / "small")
    record = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert record["quant_method"] == "bitsandbytes"
    folder_of(BertModel(tiny_config("bert", hidden=64, ffn=128), add_pooling_layer=False), tmp_path / "headless")
    assert load(tmp_path / "headless", asked).classifier.weight.dtype == torch.float32


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
        again = load(stored[name], given)
        assert_same(plain, again, "bert", name)
        assert again.config.to_dict() == plain.config.to_dict()


@pytest.mark.parametrize("loaded", ["while loading", "with ours"])
def test_what_was_quantised_while_loading_undoes_it_itself(loaded, tmp_path):
    """transformers' own leaves nn.Linear in the place of GPT-2's Conv1D: the folder does not load, or transposed."""
    asked = ShrinkConfig(quantization=QuantizationConfig(bits=8))
    tiny_classifier("gpt2", hidden=64, ffn=128).save_pretrained(tmp_path / "folder")
    small = load(tmp_path / "folder", asked)
    if loaded == "with ours":
        small.save_pretrained(tmp_path / "small")
        small = load(tmp_path / "small", asked)
    expected = dequantize(small)
    small.dequantize().save_pretrained(tmp_path / "back")
    assert_same(expected, AutoModelForSequenceClassification.from_pretrained(tmp_path / "back"), "gpt2", loaded)
