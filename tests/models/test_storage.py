"""RELIABILITY B34 and B35: floats under a config that says they are quantised load without a word and fail, or answer
nonsense, at the first forward pass; quantised weights without their config are a list of odd tensors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, ShrinkError, measure, prune, quantize
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.inspection import inspect_model
from hf_shrink.loading.save import save
from hf_shrink.models.load import load_for, load_model
from hf_shrink.plan import make_plan
from hf_shrink.recipe import Recipe
from hf_shrink.verification import verify_model
from tests.project import make_project, tiny_overrides
from tests.tiny import tiny_classifier, tiny_tokenizer

ROOT = Path(__file__).parent.parent.parent


def folder_of(path: Path, bits: int | None, *, narrow: bool = False) -> Path:
    """With ``narrow`` layers differ, so that config.json speaks our words."""
    model = tiny_classifier("bert", hidden=64, ffn=128)
    if narrow:
        model = prune(model, PruningConfig(structure="ffn", sparsity=0.5, target_modules=["0.intermediate.dense"]))
    save(model if bits is None else quantize(model, QuantizationConfig(bits=bits)), path, tokenizer=tiny_tokenizer())
    return path


def mixed(path: Path, *, weights: int | None, config: int | None, narrow: bool = False) -> Path:
    """The weights of one folder under the config of another."""
    one = folder_of(path / "weights", weights, narrow=narrow)
    two = folder_of(path / "config", config, narrow=narrow)
    words = json.loads((two / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(words))
    return one


CASES = {
    "B34, 8 bits": ({"weights": None, "config": 8}, "config.json says bitsandbytes 8-bit, the weights are F32 without scales"),
    "B34, 4 bits": ({"weights": None, "config": 4}, "config.json says bitsandbytes 4-bit, the weights are F32 without scales"),
    "B34, other shapes": ({"weights": None, "config": 8, "narrow": True}, "config.json says bitsandbytes 8-bit, the weights"),
    "B35, 8 bits": ({"weights": 8, "config": None}, "weights are bitsandbytes 8-bit, config.json has no quantization_config"),
    "B35, 4 bits": ({"weights": 4, "config": None}, "weights are bitsandbytes 4-bit, config.json has no quantization_config"),
    "B35, other shapes": ({"weights": 4, "config": None, "narrow": True}, "weights are bitsandbytes 4-bit, config.json"),
    "other bits": ({"weights": 8, "config": 4}, "weights are bitsandbytes 8-bit, config.json says bitsandbytes 4-bit"),
}
LOADERS: dict[str, tuple[Callable[[str], object], type[ShrinkError]]] = {
    "load_model": (load_model, MismatchError),
    "load_for": (lambda name: load_for("text-classification", name, new_head=False), MismatchError),
    "inspect": (inspect_model, MismatchError),
    "verify": (verify_model, IntegrityError),
}


ALIKE = ("B34, 4 bits", "B35, 8 bits", "B35, other shapes")


@pytest.mark.parametrize("case", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in CASES])
def test_config_and_weights_must_agree(case, tmp_path: Path):
    how, says = CASES[case]
    folder = mixed(tmp_path, **how)
    for name, (load, kind) in LOADERS.items():
        with pytest.raises(kind, match="weights") as raised:
            load(str(folder))
        text = str(raised.value)
        assert says in text and len(text.splitlines()) <= 3 and str(tmp_path.parent) not in text.replace(str(folder), ""), name
    for command, code in ((["measure", str(folder)], 3), (["inspect", str(folder)], 3), (["verify", str(folder)], 5)):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == code and says in " ".join(done.stderr.split()), (command, done.stderr)
    if how["weights"] is None:  # from_pretrained asks us only where config.json names us, or an argument does
        given = {} if how.get("narrow") else {"quantization_config": ShrinkConfig()}
        with pytest.raises(MismatchError, match="without scales"):
            AutoModelForSequenceClassification.from_pretrained(folder, **given)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_an_argument_asks_for_is_not_made_of_codes(bits, tmp_path: Path):
    """Whole numbers of 8 bits were taken for weights: a model without an error and with other answers."""
    folder = mixed(tmp_path, weights=bits, config=None)
    given = [{"quantization": {"bits": 8}}, {"quantization": {"bits": 16, "dtype": "bfloat16"}}]
    for words in [*given, {"pruning": {"structure": "ffn", "sparsity": 0.5}}]:
        with pytest.raises(MismatchError, match=f"{bits}-bit, config.json has no quantization_config"):
            AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=ShrinkConfig(**words))


def test_a_recipe_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path / "p"))
    folder = mixed(tmp_path, weights=None, config=8)
    given = [word for word in tiny_overrides(Path(), gradual=False) if not word.startswith(("teacher.", "model="))]
    words = [*given, f"teacher={{model: {folder}}}", f"model={folder}"]
    with pytest.raises(MismatchError, match="without scales"):
        make_plan(Recipe.from_yaml(ROOT / "recipes/quickstart.yaml", overrides=words))


def test_what_fits_is_let_through(tmp_path: Path):
    """Sharded, of both widths, and with scales in another file than the weights."""
    for bits in (None, 8, 4):
        assert load_model(str(folder_of(tmp_path / str(bits), bits))).num_parameters()
    folder = tmp_path / "8"
    weights = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + name.endswith('SCB')}-of-00002.safetensors" for name in weights}
    for file in sorted({*names.values()}):
        part = {name: tensor for name, tensor in weights.items() if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert load_model(str(folder)).is_loaded_in_8bit and inspect_model(str(folder)).quantization == "bitsandbytes 8-bit"


def test_only_what_is_loaded_is_judged(tmp_path: Path):
    """A quantised variant beside a float model, under a name that from_pretrained does not ask for, made the folder useless."""
    folder, other = folder_of(tmp_path / "float", None), folder_of(tmp_path / "8", 8)
    (other / "model.safetensors").rename(folder / "model.int8.safetensors")
    assert load_model(str(folder)).num_parameters()


def test_a_config_that_skips_every_layer_says_nothing_false(tmp_path: Path):
    folder = folder_of(tmp_path / "float", None)
    words = json.loads((folder / "config.json").read_text())
    for skipped, fits in ((["bert", "classifier"], True), (["classifier"], False)):
        record = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": skipped}
        (folder / "config.json").write_text(json.dumps({**words, "quantization_config": record}))
        if fits:
            assert load_model(str(folder)).num_parameters()
        else:
            with pytest.raises(MismatchError, match="without scales"):
                load_model(str(folder))


BAD: dict[str, tuple[int, dict[str, object], str]] = {
    "threshold below 0": (8, {"llm_int8_threshold": -1.0}, "llm_int8_threshold -1.0; allowed: a number of type float, 0 or"),
    "threshold NaN": (8, {"llm_int8_threshold": float("nan")}, "llm_int8_threshold nan; allowed"),
    "threshold 6": (8, {"llm_int8_threshold": 6}, "llm_int8_threshold 6; allowed"),
    "switch 1": (8, {"load_in_8bit": 1}, "load_in_8bit must be a boolean"),
    "typo": (4, {"bnb_4bit_quant_typ": "nf4"}, "unknown option 'bnb_4bit_quant_typ'. Did you mean 'bnb_4bit_quant_type'?"),
    "type": (4, {"bnb_4bit_quant_type": "zz9"}, "bnb_4bit_quant_type 'zz9'; allowed: nf4, fp4"),
    "dtype of whole numbers": (4, {"bnb_4bit_compute_dtype": "int8"}, "'int8'; allowed: float32, bfloat16, float16"),
    "dtype that is none": (4, {"bnb_4bit_compute_dtype": "__class__"}, "'__class__'; allowed: float32, bfloat16, float16"),
    "8 and 4": (4, {"load_in_8bit": True}, "needs one of load_in_8bit and load_in_4bit"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_bitsandbytes_cannot_mean_are_refused_in_a_stored_folder(case: str, tmp_path: Path):
    """RELIABILITY B33: transformers believes a threshold of -1 and drops a misspelt option, so that nf4 is read as fp4."""
    bits, options, says = BAD[case]
    folder = folder_of(tmp_path, bits)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= options
    (folder / "config.json").write_text(json.dumps(config))
    for load in (load_model, lambda name: load_for("text-classification", name, new_head=False), measure):
        with pytest.raises(IntegrityError, match=r"Put back the config\.json") as raised:
            load(str(folder))
        assert says in str(raised.value) and len(str(raised.value).splitlines()) <= 3


def test_options_of_older_releases_still_load(tmp_path: Path):
    """The Hub is full of such folders; strictness must not shut them out."""
    folder = folder_of(tmp_path, 8)
    config = json.loads((folder / "config.json").read_text())
    old = {"_load_in_4bit": False, "_load_in_8bit": True, "bnb_4bit_quant_storage": "uint8", "llm_int8_threshold": 6.0}
    config["quantization_config"] = {**old, "load_in_8bit": True, "load_in_4bit": False, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(str(folder)).config.num_labels == 3
