"""``recovery: {method: qat}`` where a graph for ONNX Runtime is all that is quantised. What these prevent: a graph of another
model than the one trained for it, numbers of the one told of the other, and a training that begins anew."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_shrink import Recipe, artefact, gated, recovering, run
from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.files import sha256
from hf_shrink.measurement.gate import judge_gate
from hf_shrink.measurement.subjects import load
from hf_shrink.plan import make_plan
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_stored import stored_weights
from hf_shrink.quantization.roundings import roundings_of
from hf_shrink.quantization.straight_through import check_exported
from hf_shrink.targets import oriented, projections
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.verification import verify_model
from tests.lossy import FOLDER, copied, lossy_run, recipe_of, report, value
from tests.project import make_project, tiny_overrides

ROOT = Path(__file__).parent.parent
WORDS = "max_steps: 8, per_device_train_batch_size: 8, learning_rate: 2.0e-3, use_cpu: true, save_steps: 3"
GRAPH = "onnx/model_quantized.onnx"
ONNX = QuantizationConfig(backend="onnx")


def recipe(*overrides: str, quantization: str = "{backend: onnx}") -> Recipe:
    return recipe_of(f"{{method: qat, training: {{{WORDS}}}}}", f"quantization={quantization}", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lossy_run(tmp_path_factory.mktemp("graph"), recipe())


@pytest.fixture
def own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run as the current folder."""
    return copied(finished, tmp_path, monkeypatch)


def test_the_artefact_is_the_trained_float_model_and_the_graph_is_made_of_it(own: Path):
    found, planned = report(), {stage.name: stage for stage in make_plan(recipe()).stages}
    assert [stage["name"] for stage in found["stages"]] == ["student", "recovered", "onnx"]
    student, recovered, graph = found["stages"]
    before, after = (load(FOLDER / f"stages/{name}")[0] for name in ("student", "recovered"))
    check_exported(after, FOLDER, roundings_of(after, ONNX))
    with pytest.raises(IntegrityError, match="is stored as other numbers"):
        check_exported(before, FOLDER, roundings_of(before, ONNX))
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/recovered/model.safetensors")
    assert found["tier"] == "stock" and found["reload"]["max_difference"] == 0.0 and not (FOLDER / "stages/quantized").exists()
    size = value(recovered, "bytes_on_disk")
    assert size == value(student, "bytes_on_disk") == pytest.approx(planned["recovered"].bytes, rel=0.01)
    assert planned["recovered"].parameters == value(recovered, "parameters")
    assert len({value(stage, "perplexity") for stage in (student, recovered, graph)}) == 3
    assert planned["recovered"].does == tuple(recovered["did"][:-1]) and "took" in recovered["did"][-1]
    assert "the weights of 14 projections and the embeddings rounded as the graph stores them" in recovered["did"][0]
    first, last = found["recovery"]["kl"]
    assert found["recovery"]["backend"] == "onnx" and first > 0 and last > 0 and first != last
    card = (FOLDER / "README.md").read_text()
    assert "with weights and embeddings as the graph holds them and activations in float: " in card and "- qat\n" in card
    assert any("as reported" in line for line in verify_model(str(FOLDER)).passed)


def test_it_goes_on_after_a_kill_to_the_same_bytes_and_a_finished_run_does_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    names, steps = ("model.safetensors", GRAPH), []
    whole = [sha256(FOLDER / name) for name in names]
    shutil.rmtree(FOLDER / "stages/recovered")
    real = ShrinkTrainer.training_step

    def step(self: Any, model: Any, *args: Any, **words: Any) -> Any:
        steps.append(self.state.global_step)
        if steps == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        return real(self, model, *args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(ShrinkTrainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            run(recipe())
        run(recipe())
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7] and [sha256(FOLDER / name) for name in names] == whole
    monkeypatch.setattr(recovering, "_write_for_graph", lambda *_: pytest.fail("made again"))
    run(recipe())


def test_a_graph_that_misses_its_gate_leaves_the_float_model(own: Path, monkeypatch: pytest.MonkeyPatch):
    def judge(*args: Any, **words: Any) -> Any:
        found = judge_gate(*args, **words)
        held = (dataclasses.replace(stage, held=stage.name != "onnx") for stage in found.stages)
        return dataclasses.replace(found, stages=tuple(held))

    monkeypatch.setattr(gated, "judge_gate", judge)
    found = run(recipe("gate={keep: 0.5, on_miss: roll_back}")).report
    assert found["gate"]["model"] == "recovered" and "recovery" in found and not (FOLDER / GRAPH).exists()
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/recovered/model.safetensors")


@pytest.mark.parametrize(
    ("models", "missed", "model", "graph"),
    [
        ("teacher student recovered", "recovered", "student", False),
        ("teacher student recovered", "", "recovered", True),
        ("teacher student quantized recovered", "recovered", "quantized", True),
    ],
)
def test_a_graph_goes_with_the_model_that_it_is_made_of(models: str, missed: str, model: str, graph: bool):
    """Rolled back to the student, a graph of weights that lie nowhere would stand beside it."""
    names = [*models.split(), "onnx"]
    verdict: Any = SimpleNamespace(held=lambda name: name != missed, stages=[SimpleNamespace(name=n, why="") for n in names])
    kept = gated._rolled_back(verdict, names[:-1], graph=True)
    assert kept is not None and (kept.model, kept.graph) == (model, graph) and ("onnx" in kept.dropped) != graph


def test_a_graph_of_other_numbers_than_were_trained_is_no_result(own: Path, monkeypatch: pytest.MonkeyPatch):
    real = artefact.write_graphs
    monkeypatch.setattr(artefact, "write_graphs", lambda model, *args, **words: real(load(Path("base"))[0], *args, **words))
    with pytest.raises(IntegrityError, match="is stored as other numbers than it was trained with"):
        run(recipe(quantization="{backend: onnx, float_graph: true}"), accept_changes=["quantization"])


@pytest.mark.slow
def test_beside_bitsandbytes_the_training_is_for_its_model_and_the_graph_of_the_float_student(own: Path):
    """Two roundings ask for two trainings; the recovered model has no float weights that a graph could be made of."""
    both = recipe("recovery.training.max_steps=2", quantization="[{bits: 4}, {backend: onnx}]")
    found = run(both, accept_changes=["quantization", "recovery"]).report
    assert [stage["name"] for stage in found["stages"]] == ["student", "quantized", "recovered", "onnx"]
    assert stored_bits(load(FOLDER)[0]) and "backend" not in found["recovery"]
    student = load(FOLDER / "stages/student")[0]
    check_exported(student, FOLDER, roundings_of(student, ONNX))


@pytest.mark.slow
def test_zeros_frozen_parts_and_a_cut_vocabulary_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(make_project(tmp_path / "p"))
    words = [word for word in tiny_overrides(Path(), gradual=False) if not word.startswith("teacher.")]
    found = run(
        Recipe.from_yaml(
            ROOT / "recipes/quickstart.yaml",
            [
                *(*words, "teacher=null", "distillation=null", "student={start: model, layers: 2}", "measurement.floor=null"),
                "pruning=[{sparsity: 0.5, end_step: 2}, {structure: vocabulary, min_count: 1}]",
                "optimization={freeze: [embeddings]}",
                "quantization={backend: onnx, mode: static, calibration_rows: 8}",
                "recovery={method: qat, calibration_rows: 8, training: {max_steps: 4, learning_rate: 0.01}}",
                "recovery.training.use_cpu=true",
                "recovery.training.bf16=true",
            ],
        )
    ).report
    folder = Path(found["recipe"]["output_dir"])
    assert [stage["name"] for stage in found["stages"]] == ["student", "shrunk", "recovered", "onnx"]
    before, after = (AutoModelForSequenceClassification.from_pretrained(place) for place in (folder / "stages/shrunk", folder))
    held, layers = stored_weights(folder / GRAPH), projections(before)
    for name in held:
        one, other = before.get_submodule(name), after.get_submodule(name)
        if name not in layers:
            assert torch.equal(one.weight, other.weight)
            continue
        zero = oriented(one) == 0
        assert 0.4 < zero.float().mean() < 0.6 and not oriented(other)[zero].any() and not held[name][zero].any()
        assert not torch.equal(one.weight, other.weight)
    assert len(held) == 15


def test_what_a_plan_can_see_is_refused_before_anything_is_trained(own: Path):
    for word, says in (
        ("num_train_epochs: 0", "0 steps, and method: qat"),
        ("torch_compile: true", "not with weights rounded"),
    ):
        with pytest.raises(RecipeError, match=says):
            make_plan(recipe_of("{method: qat, training: {use_cpu: true, " + word + "}}", "quantization={backend: onnx}"))
    with pytest.raises(RecipeError, match="a graph takes no adapters; use method: qat, add an entry of bitsandbytes"):
        recipe_of("{training: {max_steps: 2}}", "quantization={backend: onnx}")
