"""Predicted bytes of a graph: from shapes alone, against the file that is written."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_shrink import PruningConfig, QuantizationConfig, export_onnx, prune
from hf_shrink.quantization.onnx_size import onnx_bytes
from tests.tiny import tiny_config, tiny_inputs

WIDE = {"hidden": 256, "ffn": 1024, "layers": 2}


@pytest.mark.parametrize(
    ("auto", "family", "more"),
    [
        (AutoModelForSequenceClassification, "bert", {"vocab_size": 20_000}),
        pytest.param(AutoModelForSequenceClassification, "distilbert", {"vocab_size": 20_000}, marks=pytest.mark.slow),
        pytest.param(AutoModelForCausalLM, "gpt2", {"vocab_size": 8_000}, marks=pytest.mark.slow),
        (AutoModelForCausalLM, "llama", {"vocab_size": 8_000}),
    ],
)
def test_the_plan_meets_the_file_within_one_percent(auto: Any, family: str, more: dict[str, int], tmp_path: Any):
    """A plan that forgets scales, embeddings or a table that stays float promises another file than comes."""
    config = QuantizationConfig(backend="onnx", float_graph=family == "bert")
    written = auto.from_config(tiny_config(family, **WIDE, **more))
    found = export_onnx(written, tmp_path / "out", config)
    with torch.device("meta"):
        planned = auto.from_config(tiny_config(family, **WIDE, **more))
    assert onnx_bytes(planned, config) == pytest.approx(sum(found.bytes.values()), rel=0.01)


def test_pruned_shapes_and_static_ranges_are_part_of_the_account(tmp_path: Any):
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert", **WIDE, vocab_size=20_000))
    small = prune(model, [PruningConfig(structure="ffn", sparsity=0.5), PruningConfig(structure="heads", sparsity=0.5)])
    config = QuantizationConfig(backend="onnx", mode="static")
    found = export_onnx(small, tmp_path / "out", config, calibration=[tiny_inputs("bert", rows=4)])
    assert onnx_bytes(small, config) == pytest.approx(sum(found.bytes.values()), rel=0.01)
    assert onnx_bytes(small, config) < onnx_bytes(model, config)
