"""Graphs for ONNX Runtime: what they compute, what stays precise in them, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from hf_shrink import OnnxModel, PruningConfig, QuantizationConfig, export_onnx, prune
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ResourceError
from hf_shrink.files import files_below, sha256
from hf_shrink.loading import onnx_export
from tests.tiny import VOCABULARY, tiny_classifier, tiny_config, tiny_inputs, tiny_tokenizer

AUTOS = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "feature-extraction": AutoModel,
    "text-generation": AutoModelForCausalLM,
}
CASES = [
    ("text-classification", "bert"),
    ("text-classification", "gpt2"),
    ("text-classification", "llama"),
    ("token-classification", "roberta"),
    ("question-answering", "distilbert"),
    ("feature-extraction", "electra"),
    ("text-generation", "gpt2"),
    ("text-generation", "llama"),
]
PLAIN = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
feed = {each.name: np.array(eval(sys.argv[2])[each.name], dtype=np.int64) for each in session.get_inputs()}
print(session.run(None, feed)[0].tolist())
assert not [name for name in sys.modules if name.startswith(("hf_shrink", "torch", "transformers"))]
"""
DYNAMIC = QuantizationConfig(backend="onnx")


def made(task: str, family: str) -> Any:
    torch.manual_seed(0)
    return AUTOS[task].from_config(tiny_config(family)).eval()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each case with its float graph, made when it is first asked for."""
    root = tmp_path_factory.mktemp("onnx")

    class Exports(dict[tuple[str, str], Path]):
        def __missing__(self, case: tuple[str, str]) -> Path:
            folder = self[case] = root / "-".join(case)
            export_onnx(made(*case), folder, QuantizationConfig(backend="onnx", float_graph=True), tokenizer=tiny_tokenizer())
            return folder

    return Exports()


@pytest.fixture(scope="module")
def bert(exports: Any) -> Path:
    return exports["text-classification", "bert"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_float_graph_is_torch_and_the_int8_one_is_near(case: tuple[str, str], exports: Any):
    """A graph that was traced with one shape gives wrong numbers for another, and nothing says so."""
    model, folder = made(*case), exports[case]
    inputs = tiny_inputs(case[1], rows=3)
    keep = inputs["attention_mask"].bool() if case[0] != "text-classification" else ...
    with torch.inference_mode():
        expected = model(**inputs)
        exact = OnnxModel.from_pretrained(folder, file="model.onnx")(**inputs)
        small = OnnxModel.from_pretrained(folder)(**inputs)
    names = [name for name in ("logits", "start_logits", "end_logits", "last_hidden_state") if name in expected]
    assert names and all(name in exact and name in small for name in names)
    for name in names:
        torch.testing.assert_close(exact[name][keep], expected[name][keep], atol=1e-5, rtol=0)
        error = (small[name] - expected[name])[keep].abs().max()
        assert 0 < error < 0.05 * max(1.0, float(expected[name].abs().max())), "8 bits round, and only round"


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "question-answering"], ids="-".join)
def test_a_pipeline_takes_the_graph_in_the_place_of_the_model(case: tuple[str, str], exports: Any, caplog: Any):
    task, _ = case
    tokenizer = tiny_tokenizer()
    model, graph = made(*case), OnnxModel.from_pretrained(exports[case], file="model.onnx")
    more = {"max_new_tokens": 4, "do_sample": False} if task == "text-generation" else {}
    found = pipeline(task, model=graph, tokenizer=tokenizer)("the red house", **more)
    expected = pipeline(task, model=model, tokenizer=tokenizer)("the red house", **more)
    if task == "feature-extraction":
        np.testing.assert_allclose(found, expected, atol=1e-5)
        return
    found, expected = (one if isinstance(one, list) else [one] for one in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {key: one[key] for key in one if key != "score"} == {key: other[key] for key in other if key != "score"}
        assert one.get("score", 0) == pytest.approx(other.get("score", 0), abs=1e-5)
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_the_cache_says_what_torch_says(family: str, exports: Any):
    """A cache in the wrong order, or places that start again at 0, still generates fluent text."""
    model, graph = (
        made("text-generation", family),
        OnnxModel.from_pretrained(exports["text-generation", family], file="model.onnx"),
    )
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])  # the first row padded on the left
    words = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 8, "min_new_tokens": 8}
    for more in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}):
        assert graph.generate(**words, **more).tolist() == model.generate(**words, **more).tolist()


def test_the_cache_has_the_names_that_transformers_js_expects(exports: Any):
    graph = onnx.load(exports["text-generation", "llama"] / "onnx/model_quantized.onnx").graph
    cache = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert [each.name for each in graph.input] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{name}" for name in cache),
    ]
    assert [each.name for each in graph.output] == ["logits", *(f"present.{name}" for name in cache)]


def test_a_process_with_onnxruntime_alone_gets_the_same_logits(bert: Path):
    """A graph that needs its maker's libraries serves nobody."""
    inputs = tiny_inputs("bert", rows=1) | {"token_type_ids": torch.zeros(1, 5, dtype=torch.int64)}
    words = str({name: tensor.tolist() for name, tensor in inputs.items()})
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(bert / "onnx/model_quantized.onnx"), words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = OnnxModel.from_pretrained(bert)(**inputs).logits
    torch.testing.assert_close(torch.tensor(eval(done.stdout)), here, atol=1e-6, rtol=0)


def test_heads_and_poolers_are_float_in_the_file_and_the_rest_is_not(bert: Path):
    """ONNX Runtime quantises every product it finds, and calls some of them by other names first."""
    stored = {tensor.name: tensor for tensor in onnx.load(bert / "onnx/model_quantized.onnx").graph.initializer}
    for name in ("bert.pooler.dense.weight", "classifier.weight"):
        assert stored[name].data_type == onnx.TensorProto.FLOAT, name
    bytes_ = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    small = [name for name, tensor in stored.items() if tensor.data_type in bytes_ and len(tensor.dims) == 2]
    assert len(small) == 2 * 6 + 3, "six projections a layer, and three tables"
    assert not [name for name in small if "pooler" in name or "classifier" in name]
    whole = [name for name, tensor in stored.items() if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2]
    assert sorted(whole) == ["bert.pooler.dense.weight", "classifier.weight"]


def test_no_weight_of_a_product_uses_the_eighth_bit(bert: Path):
    """On a CPU without VNNI sums of such products saturate, on one with VNNI they do not: nobody would find out."""
    for tensor in onnx.load(bert / "onnx/model_quantized.onnx").graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2 and "embeddings" not in tensor.name:
            assert 0 < np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64, tensor.name


def test_a_tied_output_layer_is_stored_once_and_in_float(exports: Any):
    """The exporter writes it a second time, transposed: a third of a small language model."""
    stored = list(onnx.load(exports["text-generation", "gpt2"] / "onnx/model_quantized.onnx").graph.initializer)
    tables = [t for t in stored if sorted(t.dims) == sorted((len(VOCABULARY), 32))]
    assert [(t.name, t.data_type) for t in tables] == [("transformer.wte.weight", onnx.TensorProto.FLOAT)]


def test_a_row_is_answered_alike_alone_and_among_longer_ones(bert: Path):
    """A mask that the graph ignores shows only where rows are padded."""
    graph, tokenizer = OnnxModel.from_pretrained(bert, file="model.onnx"), tiny_tokenizer()
    texts = ["red", "the house of the red river", "a blue stone the lamp of a door song road bird"]
    together = graph(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(graph(**tokenizer(text, return_tensors="pt")).logits[0], row, atol=1e-5, rtol=0)


def test_rows_of_nothing_but_padding_are_finite(bert: Path):
    ids = torch.zeros(2, 4, dtype=torch.int64)
    assert OnnxModel.from_pretrained(bert)(input_ids=ids, attention_mask=ids).logits.isfinite().all()


def test_pruned_shapes_are_exported_and_the_model_stays_as_it_is(tmp_path: Path):
    entries = [PruningConfig(structure="heads", sparsity=0.5), PruningConfig(structure="ffn", sparsity=0.4)]
    model = prune(tiny_classifier("bert"), entries)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = export_onnx(model.train(), tmp_path / "small")
    assert found.float_difference <= 1e-6 and found.quantized == 12 and found.kept["classifier"] == "task head"
    assert model.training and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert OnnxModel.from_pretrained(tmp_path / "small").config.num_labels == 3


def test_static_ranges_come_from_the_calibration(tmp_path: Path):
    """With ranges of other texts the graph would clip what it gets."""
    model, batch = tiny_classifier("bert"), tiny_inputs("bert", rows=8)
    config = QuantizationConfig(backend="onnx", mode="static")
    found = export_onnx(model, tmp_path / "static", config, calibration=[batch])
    operations = {node.op_type for node in onnx.load(tmp_path / "static/onnx/model_quantized.onnx").graph.node}
    assert "QuantizeLinear" in operations and "DynamicQuantizeLinear" not in operations
    assert 0 < found.int8_difference < 0.05
    for wanted, calibration, word in ((config, None, "needs calibration"), (DYNAMIC, [batch], "would be ignored")):
        with pytest.raises(RecipeError, match=word):
            export_onnx(model, tmp_path / "no", wanted, calibration=calibration)


def test_a_graph_that_computes_something_else_is_never_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert: Path
):
    """An exporter's fault must not replace the files of a good export."""
    folder, model = tmp_path / "out", made("text-classification", "bert")
    export_onnx(model, folder)
    before = {path: sha256(path) for path in files_below(tmp_path)}

    def wrong(model: Any) -> Any:
        graph = onnx.load(bert / "onnx/model.onnx")
        bias = next(t for t in graph.graph.initializer if t.name == "classifier.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return graph

    monkeypatch.setattr(onnx_export, "float_graph", wrong)
    with pytest.raises(IntegrityError, match="differs from torch"):
        export_onnx(model, folder)
    assert {path: sha256(path) for path in files_below(tmp_path)} == before


def test_damaged_and_missing_files_are_named(bert: Path, tmp_path: Path):
    whole = (bert / "onnx/model_quantized.onnx").read_bytes()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    with pytest.raises(MismatchError, match="export MODEL FOLDER --onnx"):
        OnnxModel.from_pretrained(tmp_path)
    for damaged in (whole[: len(whole) // 2], b"", b"\0" * 1000):
        (tmp_path / "onnx/model_quantized.onnx").write_bytes(damaged)
        with pytest.raises(IntegrityError, match="not a graph"):
            OnnxModel.from_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="name of a graph"):
        OnnxModel.from_pretrained(bert, file="../config.json")


def test_without_the_extra_the_error_names_it(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[onnx\]'"):
                export_onnx(tiny_classifier(), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[onnx\]'"):
            OnnxModel.from_pretrained(bert)
    assert files_below(tmp_path) == []


def test_inputs_that_the_graph_does_not_take_are_refused(exports: Any, bert: Path):
    graph = OnnxModel.from_pretrained(exports["question-answering", "distilbert"])
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(MismatchError, match="takes no token_type_ids"):
        graph(input_ids=ids, token_type_ids=ids)
    with pytest.raises(MismatchError, match="does not take these inputs"):
        OnnxModel.from_pretrained(bert)(input_ids=torch.ones(1, 65, dtype=torch.int64))
    with pytest.raises(RecipeError, match="runs on the CPU"):
        graph.to("cuda")
    with pytest.raises(RecipeError, match="precision"):
        graph.to(torch.float16)
