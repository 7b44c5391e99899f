"""Saving: the lowest tier, a folder that loads, a model that stays as it was."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import hf_shrink
from hf_shrink import QuantizationConfig, ShrinkConfig, quantize
from hf_shrink.errors import IntegrityError, MismatchError, ResourceError
from hf_shrink.loading.save import record_shapes, save
from hf_shrink.loading.shapes import odd_shapes
from tests.loading.odd import IDS, logits, narrow
from tests.tiny import COLOURS, FAMILIES, tiny_causal_lm, tiny_classifier, tiny_tokenizer

EIGHT, NF4 = QuantizationConfig(bits=8), QuantizationConfig(bits=4)
BF16 = QuantizationConfig(bits=16, dtype="bfloat16")
QUANTIZATIONS = {"float": None, "bf16": BF16, "int8": EIGHT, "nf4": NF4}


def made(family: str, how: str, *, odd: bool, causal: bool = False):
    make = tiny_causal_lm if causal else tiny_classifier
    model = make(family, hidden=64, ffn=256)
    if odd:
        narrow(model, (128, 64))
    config = QUANTIZATIONS[how]
    return model if config is None else quantize(model, config)


def same_weights(one, other) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and mine
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", QUANTIZATIONS)
@pytest.mark.parametrize("odd", [False, True], ids=["stock", "plugin"])
def test_from_pretrained_gives_the_same_logits_and_saving_that_again_the_same_folder(family, how, odd, tmp_path: Path):
    """For the second save transformers raises NotImplementedError where the model came from a bitsandbytes checkpoint."""
    model = made(family, how, odd=odd)
    assert save(model, tmp_path / "one", tokenizer=tiny_tokenizer()) == ("plugin" if odd else "stock")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert type(again) is type(model) and torch.equal(logits(model), logits(again))
    same_weights(model, again)
    assert save(again, tmp_path / "two", tokenizer=tiny_tokenizer()) == ("plugin" if odd else "stock")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("how", ["float", "int8", "nf4"])
def test_a_loaded_model_of_odd_shapes_saves_itself(how, tmp_path: Path):
    save(made("bert", how, odd=True), tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    same_weights(again, AutoModelForSequenceClassification.from_pretrained(tmp_path / "two"))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("how", ["float", "int8", "nf4"])
def test_the_folder_opens_without_its_head(family, how, tmp_path: Path):
    """Full paths in the record, or full names of what is kept, fit only the model with its head."""
    model = made(family, how, odd=True)
    save(model, tmp_path)
    headless = AutoModel.from_pretrained(tmp_path)
    theirs = logits(model.base_model)
    assert type(headless) is type(model.base_model) and torch.equal(logits(headless), theirs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_of_odd_shapes_generates_the_same(family, tmp_path: Path):
    model = made(family, "float", odd=True, causal=True)
    save(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **options), again.generate(IDS, **options))
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings


def test_a_loaded_odd_model_trains_and_is_quantised_like_any_other(tmp_path: Path):
    """The Trainer refuses what it takes for quantised; a shape is no quantisation."""
    from transformers.trainer_utils import validate_quantization_for_training

    save(made("bert", "float", odd=True), tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    validate_quantization_for_training(again)
    small = quantize(again, EIGHT)
    assert save(small, tmp_path / "two") == "plugin"
    assert torch.equal(logits(small), logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "two")))
    assert logits(again).isfinite().all() and again.config.quantization_config.bitsandbytes is None


def test_one_width_everywhere_is_stock_when_the_config_says_it(tmp_path: Path):
    model = narrow(tiny_classifier(ffn=64), (40, 40))
    assert len(odd_shapes(model)) == 4
    model.config.intermediate_size = 40
    assert odd_shapes(model) == {} and save(model, tmp_path) == "stock"
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_shapes_are_found_below_the_base_model_with_inputs_first():
    assert odd_shapes(narrow(tiny_classifier("gpt2", ffn=64), (64, 40))) == {
        "h.1.mlp.c_fc": (32, 40),
        "h.1.mlp.c_proj": (40, 32),
    }


def test_a_head_of_odd_shape_is_refused(tmp_path: Path):
    """It would be saved, and a random one of the right shape loaded in its place."""
    model = tiny_classifier()
    model.classifier = torch.nn.Linear(32, 7)
    with pytest.raises(MismatchError, match=r"classifier: \(32, 7\)"):
        save(model, tmp_path / "folder")


@pytest.mark.parametrize("how", QUANTIZATIONS)
def test_the_model_in_memory_stays_as_it_was(how, tmp_path: Path):
    """Saving with transformers turns config.dtype into text, and dequantize() fails over it later."""
    model = made("bert", how, odd=True)
    before = dict(vars(model.config))
    save(model, tmp_path)
    assert dict(vars(model.config)) == before


def test_labels_and_tokenizer_are_in_the_folder(tmp_path: Path):
    save(tiny_classifier(), tmp_path, tokenizer=tiny_tokenizer())
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {str(i): c for i, c in enumerate(COLOURS)}
    assert AutoTokenizer.from_pretrained(tmp_path)("red")["input_ids"] == tiny_tokenizer()("red")["input_ids"]


def test_a_failing_save_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "model"
    save(tiny_classifier(seed=0), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = tiny_classifier(seed=1)

    def half(target: Path) -> None:
        (Path(target) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", half)
    with pytest.raises(ResourceError, match="No space left"):
        save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_a_resource_error_and_leaves_no_folder(tmp_path: Path):
    """safetensors has an error of its own for it, which came out raw, and the empty folder looked like a result."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"out: not saved \(.*os error 27\)\). Free some space"):
            save(tiny_classifier(hidden=64, ffn=128), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_a_resource_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        save(tiny_classifier(), tmp_path / "file")


@pytest.mark.parametrize("held", ["model.safetensors.index.json", "adapter_config.json"])
def test_a_folder_whose_other_weights_would_be_loaded_is_refused(held, tmp_path: Path):
    """Otherwise the folder loads an adapter on top of the model, or keeps shards that count as its bytes."""
    (tmp_path / held).write_text("{}")
    with pytest.raises(MismatchError, match=rf"holds {held}"):
        save(made("bert", "float", odd=False), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [held]


@pytest.mark.parametrize("how", ["peft", "transformers", "deleted"])
def test_a_model_with_adapters_is_refused(how, tmp_path: Path):
    """Its own save_pretrained would write the adapter alone, into a folder that cannot be loaded by itself.

    A deleted one leaves wrappers, under whose names the weights would be saved: nothing looks for them there.
    """
    model, config = made("bert", "float", odd=False), LoraConfig(target_modules=["query"])
    if how == "peft":
        model = get_peft_model(model, config)
    else:
        model.add_adapter(config)
        if how == "deleted":
            model.delete_adapter("default")
    with pytest.raises(MismatchError, match="carries adapters"):
        save(model, tmp_path / "one")
    with pytest.raises(MismatchError, match="expected a transformers PreTrainedModel, got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "one")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_public_save_writes_again_what_plain_transformers_cannot(bits, tmp_path: Path):
    """The stock path ends in NotImplementedError: should it work one day, this says that ``save`` is not needed for it."""
    quantize(tiny_classifier("bert", hidden=64, ffn=256), QuantizationConfig(bits=bits)).save_pretrained(tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    with pytest.raises(NotImplementedError):
        again.save_pretrained(tmp_path / "stock")
    assert hf_shrink.save(again, str(tmp_path / "two")) == "stock"
    for name in ("config.json", "model.safetensors"):
        ours, theirs = (tmp_path / folder / name for folder in ("two", "one"))
        if name.endswith("json"):
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            one, two = load_file(ours), load_file(theirs)
            assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_four_bit_layers_that_were_repacked_are_refused(tmp_path: Path):
    """Their file would be wrong, and transformers writes it without a word."""
    model = made("bert", "nf4", odd=False)
    model.bert.encoder.layer[0].output.dense.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(IntegrityError, match=r"folder: an evaluation has repacked 4-bit .*layer\.0\.output\.dense"):
        save(model, tmp_path / "folder")


def test_record_shapes_lets_the_model_save_itself(tmp_path: Path):
    model = made("bert", "float", odd=True)
    assert record_shapes(model) == "plugin" and isinstance(model.config.quantization_config, ShrinkConfig)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)))


def test_without_the_plugin_loading_fails_and_says_so(tmp_path: Path):
    """Random weights of the dense shape would load without an error."""
    save(made("bert", "float", odd=True), tmp_path)
    code = f"from transformers import AutoModelForSequenceClassification as A; A.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "hf_shrink" in done.stderr and "MISMATCH" in done.stderr


def test_a_record_of_another_model_is_refused(tmp_path: Path):
    save(made("bert", "float", odd=True), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("encoder.layer.1.", "encoder.layer.7."))
    with pytest.raises(IntegrityError, match=r"encoder\.layer\.7\.[a-z.]+', which BertModel does not have"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_plugin_files_hold_only_the_narrow_weights(tmp_path: Path):
    save(made("bert", "float", odd=True), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["bert.encoder.layer.1.output.dense.weight"].shape == (64, 64)
