"""What ``inspect`` says below its table: layers that are not quantised and why, tables in int8, and an adapter."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig, prune, quantize
from hf_shrink.adapters import FOLDER, WEIGHTS
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError
from hf_shrink.inspection import inspect_model
from hf_shrink.loading.save import save, save_adapter
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.training.recovery import with_correction
from tests.tiny import VOCABULARY, tiny_classifier

NARROW = PruningConfig(structure="ffn", sparsity=0.5, round_to=32, target_modules=["0.intermediate.dense"])


def narrow():
    """A layer of 32 neurons, whose next one is too narrow for 4 bits."""
    return prune(tiny_classifier("bert", hidden=64, ffn=64), NARROW)


@pytest.mark.parametrize("way", ["in memory", "while loading", "by budget"])
def test_each_kept_layer_has_its_reason(way, tmp_path: Path):
    """Names alone, which is what transformers records, do not say whether a layer was kept by rule or by mistake."""
    model, config = narrow(), QuantizationConfig(bits=4)
    if way == "in memory":
        save(quantize(model, config), tmp_path / "small")
    elif way == "while loading":
        save(model, tmp_path / "float")
        asked = ShrinkConfig(quantization=config)
        save(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "float", quantization_config=asked),
            tmp_path / "small",
        )
    else:
        config = QuantizationConfig(bits="auto", budget={"bits_per_weight": 7.5})
        batches = [{"input_ids": torch.randint(4, len(VOCABULARY), (4, 8))}]
        save(quantize(model, config, batches), tmp_path / "small")
    expected = dict(keep_plan(model, config).kept)
    assert expected["classifier"] == "task head" and expected["bert.pooler.dense"] == "pooler"
    found = inspect_model(str(tmp_path / "small"))
    assert expected.items() <= dict(found.kept).items()
    if way != "by budget":
        assert dict(found.kept) == expected
        assert any("in_features not a multiple of 64" in reason for reason in found.kept.values())
        assert "not quantised: bert.pooler.dense: pooler" in found.notes()
    assert json.loads(json.dumps(found.to_json()))["kept"] == dict(found.kept)


def test_a_folder_of_another_maker_has_names_without_reasons(tmp_path: Path):
    save(quantize(tiny_classifier("bert", hidden=64, ffn=64), QuantizationConfig(bits=8)), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["kept_in_high_precision"]
    path.write_text(json.dumps(config))
    found = inspect_model(str(tmp_path))
    assert set(found.kept.values()) == {"no reason is on record"} and "classifier" in found.kept
    save(tiny_classifier("bert"), tmp_path / "float")
    assert inspect_model(str(tmp_path / "float")).notes() == ()


@pytest.mark.parametrize(
    ("record", "said"), [({"quant_method": "fp8"}, "fp8"), ({"quant_method": "gptq", "bits": 3}, "gptq 3-bit")]
)
def test_weights_in_eight_bit_floats_are_counted_and_other_methods_named(record, said, tmp_path: Path):
    """torch counts no zeros in float8, so that a public folder ended in a traceback; and it was said not to be quantised."""
    save(tiny_classifier("bert"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(key for key in tensors if key.endswith("0.attention.self.query.weight"))
    plain = inspect_model(str(tmp_path))
    tensors[name][:] = 0.5
    tensors[name][0, :3] = torch.tensor([0.0, -0.0, 0.0])
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": record}))
    found = inspect_model(str(tmp_path))
    ours, theirs = (next(part for part in each.parts if part.name == "layer 0") for each in (found, plain))
    assert found.quantization == said and plain.quantization is None
    assert ours.dtypes == ("float32", "float8_e4m3fn") and ours.bytes == theirs.bytes - 3 * tensors[name].numel()
    assert ours.zeros * ours.parameters == pytest.approx(theirs.zeros * theirs.parameters + 3)


def test_tables_of_int8_are_counted_without_their_scales(tmp_path: Path):
    model = tiny_classifier("bert", hidden=64, ffn=64)
    model.bert.embeddings.word_embeddings.weight.data[5] = 0
    plain, tables = tmp_path / "plain", tmp_path / "tables"
    save(quantize(model, QuantizationConfig(bits=8)), plain)
    save(quantize(model, QuantizationConfig(bits=8, embeddings="int8")), tables)
    before, after = inspect_model(str(plain)), inspect_model(str(tables))
    assert after.quantization == "bitsandbytes 8-bit, embeddings int8" and "import hf_shrink" in after.loads_with
    assert [part.parameters for part in before.parts] == [part.parameters for part in after.parts]
    words, norms = before.parts[0], after.parts[0]
    rows = len(VOCABULARY) + 64 + 2
    assert words.name == "embeddings" and words.bytes - norms.bytes == 4 * 64 * rows - (64 + 2) * rows
    assert norms.zeros >= 2 * 64 / norms.parameters  # padding and the row that was made zero
    assert [part.bytes for part in before.parts[1:]] == [part.bytes for part in after.parts[1:]]


def test_an_adapter_is_never_left_out(tmp_path: Path):
    """The table alone would be that of a model that nobody judged."""
    model = tiny_classifier("bert", hidden=64, ffn=64)
    small = quantize(model, QuantizationConfig(bits=4))
    save(small, tmp_path / "small")
    save_adapter(with_correction(model, small, rank=4), tmp_path / "small")
    stored = load_file(tmp_path / "small" / FOLDER / WEIGHTS)
    found = inspect_model(str(tmp_path / "small"))
    assert found.adapter is not None and found.adapter.rank == 4 and found.adapter.kind == "LoRA"
    assert found.adapter.parameters == sum(tensor.numel() for tensor in stored.values())
    assert found.adapter.bytes == (tmp_path / "small" / FOLDER / WEIGHTS).stat().st_size
    assert len(found.adapter.targets) == len(stored) // 2 == len(keep_plan(model, QuantizationConfig(bits=4)).quantized)
    assert "adapter with peft" in found.heading
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "small")])
    words = " ".join(done.stdout.split())
    assert done.exit_code == 0 and re.search(r"LoRA of rank 4 on 12 layers.*parameters", words), done.stdout
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "small"), "--json"])
    assert json.loads(done.stdout)["adapter"]["rank"] == 4
    shutil.copytree(tmp_path / "small", tmp_path / "torn")
    weights = tmp_path / "torn" / FOLDER / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(IntegrityError, match="adapter"):
        inspect_model(str(tmp_path / "torn"))
