"""Padding with zeros: any shapes become stock, outputs stay, and the price is said."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_shrink import QuantizationConfig
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.families import family_of
from hf_shrink.loading.export import export_uniform
from hf_shrink.loading.save import record_shapes, save
from hf_shrink.loading.shapes import odd_shapes
from hf_shrink.loading.uniform import example_inputs, uniform
from hf_shrink.pruning.hidden import cut_hidden
from hf_shrink.pruning.units import units_of
from hf_shrink.quantization.quantize import quantize
from tests.loading.cuts import assert_attributes_fit, chosen, cut, cut_classifier, first_output
from tests.tiny import ALL_FAMILIES, tiny_classifier, tiny_config, tiny_tokenizer

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)


@every_family
def test_zeros_change_nothing_but_the_size(family):
    """A head in the wrong third of a packed projection, or a bias that is not zero, would change every logit."""
    small = cut_classifier(family, "plugin")
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    padded, cost = uniform(small)
    assert odd_shapes(small) and odd_shapes(padded) == {} and not hasattr(padded.config, "quantization_config")
    assert cost.max_difference <= 1e-5, "in float32 sums over more zeros are rounded in another order"
    mine, theirs = (first_output(copy.deepcopy(model).double(), family) for model in (small, padded))
    assert (mine - theirs).abs().max() <= 1e-12, "in float64 nothing is left of that"
    known = family_of(padded, "test")
    for kind in ("ffn", "heads"):
        counts = [units.count for units in units_of(small, known, kind)]
        after = {units.count for units in units_of(padded, known, kind)}
        assert len(after) == 1 and max(counts) <= after.copy().pop(), kind
    assert [p.units for p in cost.paddings] == ["neurons", "heads"]
    assert_attributes_fit(padded, "padded")
    assert before.keys() == small.state_dict().keys(), "the model itself stays"
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    added = padded.num_parameters() - small.num_parameters()
    assert (cost.parameters_before, cost.parameters_after) == (small.num_parameters(), padded.num_parameters())
    assert added > 0 and cost.bytes_after - cost.bytes_before == 4 * added
    zeros = sum(int((t == 0).sum()) for t in padded.parameters()) - sum(int((t == 0).sum()) for t in small.parameters())
    assert zeros == added, "what was added is zero"


def test_the_cost_by_hand():
    """BERT, hidden 32, 4 heads of 8, FFN 64: heads 1 and 3, neurons 32 and 16 remain."""
    _, cost = uniform(cut_classifier("bert", "plugin"))
    assert [(p.units, p.before, p.after) for p in cost.paddings] == [("neurons", (32, 16), 32), ("heads", (1, 3), 4)]
    neuron, head = 32 + 1 + 32, 3 * 8 * (32 + 1) + 32 * 8
    assert cost.parameters_after - cost.parameters_before == 16 * neuron + (3 + 1) * head
    assert json.dumps(cost.to_json()) and [column.header for column in cost.rich().columns]


def test_a_head_count_that_the_config_refuses_is_passed_over():
    """3 heads in 32 features: transformers' Llama config wants a divisor, so one more key-value head is added."""
    config = tiny_config("llama", num_labels=3)
    config.num_key_value_heads = 4
    small = cut(AutoModelForSequenceClassification.from_config(config), "plugin")
    assert [units.count for units in units_of(small, family_of(small, "test"), "heads")] == [1, 3]
    padded, cost = uniform(small)
    assert cost.paddings[1].after == 4 and padded.config.num_key_value_heads == 4


def test_a_model_that_is_stock_costs_nothing():
    small = cut_classifier("bert", "stock")
    padded, cost = uniform(small)
    assert cost.paddings == () and cost.bytes_before == cost.bytes_after and cost.max_difference == 0.0
    assert padded.state_dict().keys() == small.state_dict().keys() and padded is not small


def test_heads_that_fill_more_than_the_hidden_width_are_refused_with_the_reason():
    """A hidden width that was cut below its heads: zeros only add."""
    small = cut(tiny_classifier("bert"), "plugin")
    small = cut_hidden(small, chosen(32, 16, 0))
    record_shapes(small)
    with pytest.raises(MismatchError, match=r"3 heads of 8 features are not the hidden width of 16"):
        uniform(small)


def test_packed_weights_are_refused():
    model = quantize(cut_classifier("bert", "plugin", hidden=128, ffn=256), QuantizationConfig(bits=8))
    record_shapes(model)
    with pytest.raises(MismatchError, match="quantised weights cannot be padded"):
        uniform(model)


@every_family
def test_the_example_runs_and_is_the_same_each_time(family):
    model = cut_classifier(family, "stock")
    first, second = example_inputs(model), example_inputs(model)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        assert model(**first)[0].isfinite().all()


def test_plain_transformers_loads_every_padded_folder(tmp_path: Path):
    """That is what the padding is for."""
    expected = {}
    for family in ALL_FAMILIES:
        padded, _ = uniform(cut_classifier(family, "plugin"))
        assert save(padded, tmp_path / family) == "stock"
        batch = example_inputs(padded)
        with torch.no_grad():
            expected[family] = (type(padded).__name__, batch, padded(**batch)[0])
    torch.save(expected, tmp_path / "expected.pt")
    code = f"""
import sys, torch, transformers
sys.modules["hf_shrink"] = None
torch.set_num_threads(1)
for family, (name, batch, logits) in torch.load({str(tmp_path / "expected.pt")!r}).items():
    model = getattr(transformers, name).from_pretrained({str(tmp_path)!r} + "/" + family).eval()
    with torch.no_grad():
        print(family, (model(**batch)[0] - logits).abs().max().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for family in ALL_FAMILIES for word in (family, "0.0")]


def test_a_folder_is_exported_with_its_tokenizer_and_stays_as_it_was(tmp_path: Path):
    source, target = tmp_path / "odd", tmp_path / "stock"
    small = cut_classifier("bert", "plugin")
    save(small, source, tokenizer=tiny_tokenizer())
    (source / "hf_shrink_report.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    done = export_uniform(source, target)
    assert done.num_tensors == len(small.state_dict()) and done.cost.bytes_after > done.cost.bytes_before
    assert json.loads(json.dumps(done.to_json()))["cost"]["max_difference"] <= 1e-6 and done.rich().row_count == 5
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    assert not (target / "hf_shrink_report.json").exists(), "its numbers are another model's"
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    again = AutoModelForSequenceClassification.from_pretrained(target)
    torch.testing.assert_close(first_output(again, "bert"), first_output(small, "bert"), rtol=1e-6, atol=1e-6)
    assert AutoTokenizer.from_pretrained(target)("red")["input_ids"] == tiny_tokenizer()("red")["input_ids"]
    with pytest.raises(RecipeError, match="stock: is there already and stays as it is"):
        export_uniform(source, target)


def test_a_failing_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(cut_classifier("bert", "plugin"), tmp_path / "odd")

    def fail(*_: object) -> None:
        raise IntegrityError("differs")

    monkeypatch.setattr("hf_shrink.loading.export.verify", fail)
    with pytest.raises(IntegrityError, match="differs"):
        export_uniform(tmp_path / "odd", tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, MismatchError, "no config.json"),
        ("[]", IntegrityError, "no JSON object"),
        ('{"architectures": ["os"]}', MismatchError, "name no model of transformers"),
        ("{}", MismatchError, "architectures None"),
    ],
)
def test_a_folder_without_a_model_is_refused(text, error, says, tmp_path: Path):
    (tmp_path / "odd").mkdir()
    if text is not None:
        (tmp_path / "odd" / "config.json").write_text(text)
    with pytest.raises(error, match=says):
        export_uniform(tmp_path / "odd", tmp_path / "stock")


def test_a_weight_that_is_missing_is_not_made_up(tmp_path: Path):
    save(cut_classifier("bert", "plugin"), tmp_path / "odd")
    weights = load_file(tmp_path / "odd" / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "odd" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="1 missing"):
        export_uniform(tmp_path / "odd", tmp_path / "stock")
