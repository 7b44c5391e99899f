"""What an ONNX export and its loading refuse. What these prevent: a graph that computes something else, and a file that is
damaged or made for other inputs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
)

from hf_shrink import QuantizationConfig, export_onnx, quantize
from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.files import files_below
from tests.loading.test_onnx_export import DYNAMIC
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_config


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (lambda: tiny_classifier("vit"), RecipeError, "'vit' are not exported"),
        (lambda: tiny_classifier("t5"), RecipeError, "'t5' are not exported"),
        (lambda: quantize(tiny_classifier(), QuantizationConfig()), RecipeError, "quantised already"),
        (lambda: AutoModelForCausalLM.from_config(tiny_config("bert", is_decoder=True)), RecipeError, "BertLMHeadModel"),
    ],
    ids=["vit", "t5", "quantised", "bert as a decoder"],
)
def test_what_is_not_exported_is_refused_and_leaves_no_file(model: Any, error: Any, words: str, tmp_path: Path):
    with pytest.raises(error, match=words):
        export_onnx(model(), tmp_path / "out")
    assert files_below(tmp_path) == []


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path):
    model = tiny_causal_lm("gpt2")
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="c_fc"):
        export_onnx(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"backend": "onnx", "bits": 4}, "bits: 4"),
        ({"backend": "onnx", "threshold": 6.0}, "threshold would be ignored"),
        ({"mode": "static"}, "mode would be ignored"),
        ({"backend": "onnx", "calibration_rows": 8}, "calibration_rows would be ignored"),
        ({"backend": "onxx"}, "'bitsandbytes' or 'onnx'"),
    ],
)
def test_options_of_the_other_backend_are_refused(words: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        QuantizationConfig(**words)


def test_the_other_backend_is_refused_where_it_makes_no_sense(tmp_path: Path):
    with pytest.raises(RecipeError, match="call export_onnx"):
        quantize(tiny_classifier(), DYNAMIC)
    with pytest.raises(RecipeError, match="backend='onnx'"):
        export_onnx(tiny_classifier(), tmp_path, QuantizationConfig())
