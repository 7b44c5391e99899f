"""Looking into a folder: what is there, not what the config would like to be there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_shrink import QuantizationConfig
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.families import family_of, named_layers, stack_by_layer
from hf_shrink.heads import heads_of
from hf_shrink.inspection import Inspection, inspect_model
from hf_shrink.loading.save import record_shapes
from hf_shrink.quantization.quantize import quantize
from hf_shrink.targets import features, projections
from tests.loading.cuts import TIERS, cut_classifier
from tests.tiny import ALL_FAMILIES, tiny_classifier


def inspected(model, folder: Path, **options) -> Inspection:
    model.save_pretrained(folder, **options)
    return inspect_model(str(folder))


def layers(found: Inspection) -> list:
    return [part for part in found.parts if "layer" in part.name]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("tier", TIERS)
def test_heads_and_widths_are_those_of_the_modules(family, tier, tmp_path: Path):
    """A file may name its weights otherwise than the modules (ViT), transpose them (GPT-2), or have two stacks (T5)."""
    model = cut_classifier(family, tier)
    found = inspected(model, tmp_path)
    stacks = stack_by_layer(model, family_of(model, "test"))
    expected = []
    for name, layer in named_layers(model, family_of(model, "test")).items():
        heads = [heads_of(layer, attention) for attention in stacks[name].attentions]
        width = features(projections(layer)[stacks[name].ffn_out])[0]
        expected.append((tuple(h.heads for h in heads), tuple(h.kv_heads for h in heads), width))
    assert [(part.heads, part.kv_heads, part.ffn_width) for part in layers(found)] == expected and len(expected) >= 2
    assert sum(part.parameters for part in found.parts) == sum(
        t.numel() for t in load_file(tmp_path / "model.safetensors").values()
    )
    assert sum(part.bytes for part in found.parts) == 4 * sum(part.parameters for part in found.parts)
    assert ("import hf_shrink" in found.loads_with) == hasattr(model.config, "quantization_config")


def test_the_table_by_hand(tmp_path: Path):
    """Heads of 8 features in 32: BERT keeps 1 and 3 of 4 heads, 32 and 16 of 64 neurons."""
    found = inspected(cut_classifier("bert", "plugin"), tmp_path)
    assert [part.name for part in found.parts] == ["embeddings", "layer 0", "layer 1", "other"]
    first = found.parts[1]
    attention = 3 * (8 * 32 + 8) + (32 * 8 + 32)
    assert first.parameters == attention + (32 * 32 + 32) * 2 + 4 * 32 and first.bytes == 4 * first.parameters
    assert (first.heads, first.ffn_width, first.zeros, first.dtypes) == ((1,), 32, 0.0, ("float32",))
    table = found.rich()
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["heads"] == ["", "1", "3", ""] and cells["FFN width"] == ["", "32", "16", ""]
    assert json.loads(json.dumps(found.to_json()))["parts"][2]["heads"] == [3]


def test_two_stacks_two_attentions_and_shared_keys_are_written_out(tmp_path: Path):
    t5 = inspected(cut_classifier("t5", "plugin"), tmp_path / "t5")
    assert [part.name for part in layers(t5)] == [f"{side} layer {i}" for side in ("encoder", "decoder") for i in (0, 1)]
    assert [part.heads_text for part in layers(t5)] == ["1", "1", "3 + 2", "3 + 2"]
    llama = inspected(cut_classifier("llama", "plugin"), tmp_path / "llama")
    assert [part.heads_text for part in layers(llama)] == ["2 (1 KV)", "4 (2 KV)"]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tier", TIERS)
def test_quantised_weights_hide_their_shapes_and_the_record_tells(family, bits, tier, tmp_path: Path):
    """Packed weights are flat, and eight-bit ones of GPT-2 lie the other way round than its floats."""
    small = cut_classifier(family, tier, hidden=128, ffn=256)
    model = quantize(small, QuantizationConfig(bits=bits))
    record_shapes(model)
    found, plain = inspected(model, tmp_path / "bits"), inspected(small, tmp_path / "float")
    for part, before in zip(layers(found), layers(plain), strict=True):
        assert (part.heads, part.kv_heads, part.ffn_width) == (before.heads, before.kv_heads, before.ffn_width)
        assert part.parameters == before.parameters and part.bytes < before.bytes
        assert (part.zeros is None) == (bits == 4) and ("uint8" if bits == 4 else "int8") in part.dtypes
    assert found.quantization == ("bitsandbytes 4-bit nf4" if bits == 4 else "bitsandbytes 8-bit")


def test_zeros_are_counted_where_they_are(tmp_path: Path):
    model = cut_classifier("bert", "stock")
    weight = model.bert.encoder.layer[1].intermediate.dense.weight
    with torch.no_grad():
        weight[: weight.shape[0] // 2] = 0
    half = weight.numel() // 2
    first, second = layers(inspected(model, tmp_path))
    assert first.zeros == 0.0 and second.zeros == half / second.parameters


def test_shards_and_precision(tmp_path: Path):
    found = inspected(cut_classifier("bert", "plugin").bfloat16(), tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert [part.heads for part in layers(found)] == [(1,), (3,)] and layers(found)[0].dtypes == ("bfloat16",)
    assert all(part.bytes == 2 * part.parameters for part in found.parts)


def test_masks_and_positions_of_older_releases_are_no_weights(tmp_path: Path):
    """A causal mask is half zeros: GPT-2 would seem pruned, and a mask of bytes would seem packed."""
    model = tiny_classifier("gpt2")
    before = inspected(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 64, 64))
    weights["transformer.h.1.attn.bias"] = torch.tril(torch.ones(1, 1, 64, 64, dtype=torch.uint8))
    weights["transformer.position_ids"] = torch.arange(64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = inspect_model(str(tmp_path))
    for one, two in zip(before.parts, after.parts, strict=True):
        assert (one.parameters, one.zeros, one.dtypes) == (two.parameters, two.zeros, two.dtypes), one.name
    assert layers(after)[0].bytes == layers(before)[0].bytes + 4 * 64 * 64


def test_a_family_that_is_not_known_is_one_part(tmp_path: Path):
    tiny_classifier("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "of my own"}))
    found = inspect_model(str(tmp_path))
    assert [part.name for part in found.parts] == ["other"] and found.parts[0].heads_text == "" and found.rich().row_count == 1


def test_what_is_damaged_or_missing_is_said(tmp_path: Path):
    with pytest.raises(MismatchError, match=r"no config\.json"):
        inspect_model(str(tmp_path))
    tiny_classifier("bert").save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = config.read_text()
    config.write_text(json.dumps(json.loads(good) | {"hidden_size": "wide"}))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        inspect_model(str(tmp_path))
    config.write_text("[")
    with pytest.raises(IntegrityError, match="not valid JSON"):
        inspect_model(str(tmp_path))
    config.write_text(good)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(IntegrityError, match="damaged"):
        inspect_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(MismatchError, match=r"no \*\.safetensors"):
        inspect_model(str(tmp_path))
