"""Export of what people have: half precision, folders in use, calibration that does not fit, models no graph can hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_shrink import OnnxModel, PruningConfig, QuantizationConfig, export_onnx, prune, quantize
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.files import files_below, sha256
from hf_shrink.inspection import inspect_model
from hf_shrink.measurement.subjects import load
from hf_shrink.verification import verify_model
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_config, tiny_inputs

FLOAT = QuantizationConfig(backend="onnx", float_graph=True)
STATIC = QuantizationConfig(backend="onnx", mode="static")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_compared_with_itself_in_float32(dtype: torch.dtype, tmp_path: Path):
    """Most decoders are stored so: torch's own rounding was taken for a fault of the graph."""
    model = tiny_causal_lm("llama").to(dtype)
    done = export_onnx(model, tmp_path / "out", FLOAT)
    assert done.float_difference < 1e-5 and next(model.parameters()).dtype == dtype
    batch = tiny_inputs("llama", rows=2)
    batch.pop("labels", None)
    expected = model.float().eval()(**batch).logits
    found = OnnxModel.from_pretrained(tmp_path / "out", file="model.onnx")(**batch).logits
    words = batch["attention_mask"].bool()
    torch.testing.assert_close(found[words], expected[words], atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["pruned heads", "int8"])
def test_weights_that_are_there_still_load_after_an_export_beside_them(how: str, tmp_path: Path):
    """A float config over int8 weights loads, and answers at random."""
    model = tiny_classifier("bert").eval()
    if how == "int8":
        stored = quantize(model, QuantizationConfig(bits=8))
    else:
        stored = model = prune(model, PruningConfig(structure="heads", sparsity=0.5)).eval()
    stored.save_pretrained(tmp_path / "out")
    before = {path: sha256(path) for path in files_below(tmp_path)}
    export_onnx(model, tmp_path / "out")
    assert {path: sha256(path) for path in before} == before
    batch = {name: tensor for name, tensor in tiny_inputs("bert").items() if name != "labels"}
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(**batch).logits, stored.eval()(**batch).logits)
    assert OnnxModel.from_pretrained(tmp_path / "out")(**batch).logits.isfinite().all()


@pytest.mark.parametrize("other", ["family", "labels", "unreadable"])
def test_a_folder_with_another_models_weights_is_refused_and_stays(other: str, tmp_path: Path):
    config = tiny_config("roberta") if other == "family" else tiny_config("bert", num_labels=5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    if other == "unreadable":
        (tmp_path / "config.json").write_text("{")
    before = {path: sha256(path) for path in files_below(tmp_path)}
    with pytest.raises(RecipeError, match="weights of another model"):
        export_onnx(tiny_classifier("bert"), tmp_path)
    assert {path: sha256(path) for path in files_below(tmp_path)} == before


def test_an_older_float_graph_does_not_stay_beside_the_new_one(tmp_path: Path):
    """Whoever asks for float32 would be answered by the model as it was before its last training."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"older")
    with pytest.raises(RecipeError, match=r"onnx/model\.onnx of another export, which would stay"):
        export_onnx(tiny_classifier("bert"), tmp_path)
    assert [path.name for path in files_below(tmp_path)] == ["model.onnx"]


@pytest.mark.parametrize(
    ("calibration", "error", "words"),
    [
        ([{"input_ids": torch.ones(1, 100, dtype=torch.int64)}], MismatchError, "does not fit the model"),
        ([{"input_ids": torch.full((1, 4), 9999)}], MismatchError, "does not fit the model"),
        ([{"ids": torch.ones(1, 4, dtype=torch.int64)}], MismatchError, "no input_ids; it has: ids"),
        ([], RecipeError, "calibration has no batch"),
    ],
    ids=["too long", "unknown token", "no input", "empty"],
)
def test_calibration_that_does_not_fit_is_named(calibration: Any, error: Any, words: str, tmp_path: Path):
    with pytest.raises(error, match=words):
        export_onnx(tiny_classifier("bert"), tmp_path / "out", STATIC, calibration=calibration)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("family", "more", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "rope_type 'dynamic'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding window"),
    ],
)
def test_what_a_trace_cannot_say_is_refused(family: str, more: dict[str, Any], words: str, tmp_path: Path):
    """Past the length of the trace the logits would be others, or the cache would not fit."""
    with pytest.raises(RecipeError, match=words):
        export_onnx(AutoModelForCausalLM.from_config(tiny_config(family, **more)), tmp_path / "out")


def test_a_model_in_adapters_is_told_to_merge(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(tiny_classifier("bert"), LoraConfig(target_modules=["query"]))
    with pytest.raises(RecipeError, match="merge_and_unload"):
        export_onnx(adapted, tmp_path / "out")
    left = tiny_classifier("bert")
    left.add_adapter(LoraConfig(target_modules=["query"]))
    left.delete_adapter("default")
    with pytest.raises(RecipeError, match="carries adapters"):
        export_onnx(left, tmp_path / "out")
    export_onnx(adapted.merge_and_unload(), tmp_path / "out")


def test_what_reads_weights_says_that_a_folder_holds_a_graph(tmp_path: Path):
    """ "No file named model.safetensors" sends a user to look for a file that was never to be there."""
    export_onnx(tiny_classifier("bert"), tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out/onnx"):
        for read in (inspect_model, verify_model):
            with pytest.raises(MismatchError, match="measure out/onnx"):
                read(str(place))
    with pytest.raises(MismatchError, match="measure out/onnx"):
        load(tmp_path / "out")
    assert load(tmp_path / "out/onnx")[1] == ()
