"""The graph for CPUs as a stage of a recipe: planned, measured, resumed, and gone where the recipe no longer has it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_shrink import OnnxModel, Recipe, measure, run
from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.files import sha256
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.plan import make_plan
from hf_shrink.verification import verify_model
from tests.project import make_project, tiny_overrides

ROOT = Path(__file__).parent.parent
PRUNED = "onnx/model_quantized.onnx"


def recipe(*more: str) -> Recipe:
    path = ROOT / "recipes/quickstart.yaml"
    return Recipe.from_yaml(path, overrides=[*tiny_overrides(Path()), "teacher=null", "distillation=null", *BASE, *more])


BASE = ("student={start: model, layers: 2}", "measurement.floor=null")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run has a float model and a graph."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(recipe("quantization={backend: onnx, mode: static, float_graph: true}"))
    return folder


@pytest.fixture
def own(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(done, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own/runs/quickstart"


STATIC = "quantization={backend: onnx, mode: static, float_graph: true}"


def test_the_stage_is_planned_measured_and_in_the_card(own: Path):
    report = json.loads((own / "hf_shrink_report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["student", "shrunk", "onnx"]
    assert report["onnx"]["bytes"] == {path.name: path.stat().st_size for path in sorted((own / "onnx").iterdir())}
    assert set(report["onnx"]["bytes"]) == {"model.onnx", "model_quantized.onnx"}
    assert report["kept_in_high_precision"] == {"bert.pooler.dense": "pooler", "classifier": "task head"}
    taken = {m["name"]: m for m in report["stages"][-1]["measurements"]}
    assert taken["bytes_on_disk"]["value"] == (own / PRUNED).stat().st_size, "the graph that is timed, not both"
    assert {"accuracy", "accuracy_difference", "latency_p50"} <= taken.keys()
    assert not {"macs", "parameters"} & taken.keys(), "what torch does not see is left out, not made up"
    assert "int8" in taken["latency_p50"]["setting"] and "1 thread" in taken["latency_p50"]["setting"]
    assert "import onnxruntime" in (own / "README.md").read_text()
    stage = next(stage for stage in make_plan(recipe(STATIC)).stages if stage.name == "onnx")
    assert "128 training rows" in stage.does[0] and stage.writes == "onnx" and stage.bytes is not None


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_library_is_found_before_anything_is_trained(library: str, own: Path, monkeypatch: pytest.MonkeyPatch):
    """Found by the stage itself, after hours."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ResourceError, match=r"hf-shrink\[onnx\]"):
        make_plan(recipe(STATIC))


def test_a_second_call_writes_nothing_and_a_damaged_graph_is_found(own: Path):
    before = {path: (sha256(path), path.stat().st_mtime_ns) for path in (own / "onnx").iterdir()}
    run(recipe(STATIC))
    assert {path: (sha256(path), path.stat().st_mtime_ns) for path in (own / "onnx").iterdir()} == before
    (own / PRUNED).write_bytes((own / PRUNED).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model_quantized\.onnx: changed"):
        run(recipe(STATIC))
    with pytest.raises(IntegrityError, match=r"not what was recorded: onnx/model_quantized\.onnx"):  # before it is published
        verify_model(str(own))


def test_a_missing_graph_is_made_again_and_nothing_else(own: Path):
    weights = (own / "model.safetensors").stat().st_mtime_ns
    (own / PRUNED).unlink()
    run(recipe(STATIC))
    assert OnnxModel.from_pretrained(own).config.num_labels == 3
    assert (own / "model.safetensors").stat().st_mtime_ns == weights


def test_a_graph_that_the_recipe_no_longer_has_is_gone(own: Path):
    """It would be published beside weights that it was not made from."""
    run(recipe("quantization=null"), accept_changes=["quantization"])
    assert not list(own.glob("onnx/*")) and (own / "model.safetensors").exists()


def test_the_same_call_measures_a_graph_and_its_memory(own: Path):
    config = MeasurementConfig(batch_sizes=(1,), length=8, runs=3, threads=1)
    found = measure(own / "onnx", config=config)
    assert {m.name for m in found.measurements} == {"bytes_on_disk", "memory_peak", "latency_p50", "latency_p95", "throughput"}
    assert (found.value("memory_peak") or 0) > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{bits: 8}, {bits: 4}]", "quantization.1: backend 'bitsandbytes' has quantization.0"),
        ("[{backend: onnx}, {backend: onnx, mode: static}]", "backend 'onnx' has quantization.0"),
        ("[{bits: 8}, {backend: onnx, thresold: 1}]", "quantization.1.thresold: unknown key"),
        ("{backend: onnx, bits: 4}", "quantization: backend: onnx stores 8 bits"),
        ("8", "quantization: must be a mapping"),
    ],
)
def test_entries_that_cannot_be_meant_are_refused_where_they_stand(text: str, words: str):
    with pytest.raises(RecipeError) as refused:
        recipe(f"quantization={text}")
    assert words in str(refused.value), refused.value


def test_four_bits_beside_a_graph_still_set_the_widths(own: Path):
    """The rule looks at the entry that stores the model, wherever it stands in the list."""
    both: Any = recipe("quantization=[{backend: onnx}, {bits: 4}]")
    assert {entry.round_to for entry in both.effective_pruning()} == {64}
    assert {entry.round_to for entry in recipe("quantization={backend: onnx}").effective_pruning()} == {None}
