"""``recovery: {method: qat}`` in a recipe. What these prevent: numbers of a model other than the one in the folder, a training
that begins anew, zeros that grow back, and words that nobody reads."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_shrink import Recipe, gated, pipeline, recovering, run
from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.files import sha256
from hf_shrink.measurement.gate import judge_gate
from hf_shrink.measurement.subjects import load
from hf_shrink.plan import make_plan
from hf_shrink.publishing.metadata import tags
from hf_shrink.quantization.bitsandbytes import restored, stored_bits
from hf_shrink.quantization.embeddings import recorded_dtype, rounded_table, tables
from hf_shrink.targets import oriented
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.verification import verify_model
from tests.lossy import FOLDER, copied, lossy_run, recipe_of, report, value
from tests.project import make_project, tiny_overrides

ROOT = Path(__file__).parent.parent
WORDS = "max_steps: 8, per_device_train_batch_size: 8, learning_rate: 1.0e-3, use_cpu: true, save_steps: 3"


def recipe(*overrides: str) -> Recipe:
    return recipe_of(f"{{method: qat, training: {{{WORDS}}}}}", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose base model loses something in 4 bits, with a finished run."""
    return lossy_run(tmp_path_factory.mktemp("aware"), recipe())


@pytest.fixture
def own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    return copied(finished, tmp_path, monkeypatch)


def test_the_artefact_is_the_trained_model_in_as_many_bytes_and_every_number_is_about_it(own: Path):
    """The plan, the table, the card and the folder tell of the same model."""
    found, planned = report(), {stage.name: stage for stage in make_plan(recipe()).stages}
    assert [stage["name"] for stage in found["stages"]] == ["student", "quantized", "recovered"]
    quantized, recovered = found["stages"][1:]
    size = value(recovered, "bytes_on_disk")
    assert size == pytest.approx(value(quantized, "bytes_on_disk"), rel=0.001)  # the offset of nested scales has other digits
    assert size == pytest.approx(planned["recovered"].bytes, rel=0.01)
    assert planned["recovered"].parameters == value(recovered, "parameters")
    assert planned["recovered"].does == tuple(recovered["did"][:-1]) and "took" in recovered["did"][-1]
    assert "trains the float student for 8 steps with the weights of 14 projections" in recovered["did"][0]
    before, after = found["recovery"]["kl"]
    assert found["recovery"]["method"] == "qat" and 0 < after < before
    assert found["tier"] == "stock" and found["reload"]["max_difference"] == 0.0 and not (FOLDER / "adapter").exists()
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/recovered/model.safetensors")
    assert sha256(FOLDER / "model.safetensors") != sha256(FOLDER / "stages/quantized/model.safetensors")
    assert value(recovered, "perplexity") != value(quantized, "perplexity")
    card = (FOLDER / "README.md").read_text()
    assert "by training with the weights as they are stored" in card and f"{after:.3g} after" in card
    assert "- qat\n" in card and "lora" not in card and "relative error" not in card and "load_adapter" not in card
    assert any("as reported" in line for line in verify_model(str(FOLDER)).passed)


def test_it_goes_on_after_a_kill_to_the_same_bytes_and_a_finished_run_does_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    whole, steps = sha256(FOLDER / "model.safetensors"), []
    stands = [(FOLDER / f"stages/{stage}/config.json").stat().st_mtime_ns for stage in ("student", "quantized")]
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
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7] and sha256(FOLDER / "model.safetensors") == whole
    assert stands == [(FOLDER / f"stages/{stage}/config.json").stat().st_mtime_ns for stage in ("student", "quantized")]
    assert not list((FOLDER / "stages").glob(".*"))
    monkeypatch.setattr(recovering, "_write_recovered", lambda *_: pytest.fail("made again"))
    run(recipe())


def test_a_gate_that_it_misses_leaves_the_model_that_was_only_quantised(own: Path, monkeypatch: pytest.MonkeyPatch):
    def judge(*args: Any, **words: Any) -> Any:
        found = judge_gate(*args, **words)
        held = (dataclasses.replace(stage, held=stage.name != "recovered") for stage in found.stages)
        return dataclasses.replace(found, stages=tuple(held))

    monkeypatch.setattr(gated, "judge_gate", judge)
    found = run(recipe("gate={keep: 0.5, on_miss: roll_back}")).report
    assert found["gate"]["model"] == "quantized" and list(found["gate"]["dropped"]) == ["recovered"]
    assert "recovery" not in found and "- qat\n" not in (FOLDER / "README.md").read_text()
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/quantized/model.safetensors")


def test_a_model_that_is_stored_otherwise_than_it_was_trained_is_no_result(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Adapters from here on, or the float model quantised: nobody would see it in the folder."""
    real = recovering.stored_again
    monkeypatch.setattr(recovering, "stored_again", lambda student, small, config: real(load(Path("base"))[0], small, config))
    with pytest.raises(IntegrityError, match="is stored as other numbers than it was trained with"):
        run(recipe("recovery.training.max_steps=1"), accept_changes=["recovery"])


def test_zeros_bits_of_each_layer_frozen_parts_and_a_cut_vocabulary_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The zeros of a pruned student would be gone under the sparsity on its card."""
    monkeypatch.chdir(make_project(tmp_path / "p"))
    words = [word for word in tiny_overrides(Path(), gradual=False) if not word.startswith("teacher.")]
    found = run(
        Recipe.from_yaml(
            ROOT / "recipes/quickstart.yaml",
            [
                *(*words, "teacher=null", "distillation=null", "student={start: model, layers: 2}", "measurement.floor=null"),
                "pruning=[{sparsity: 0.5, end_step: 2}, {structure: vocabulary, min_count: 1}]",
                "optimization={freeze: [embeddings]}",
                "quantization={bits: auto, budget: {bits_per_weight: 7}, calibration_rows: 8, embeddings: int8}",
                "recovery={method: qat, calibration_rows: 8, training: {max_steps: 4, learning_rate: 0.01}}",
                "recovery.training.use_cpu=true",
                "recovery.training.bf16=true",
            ],
        )
    ).report
    folder = Path(found["recipe"]["output_dir"])
    assert found["stages"][-1]["name"] == "recovered" and found["tier"] == "plugin"
    float_one = AutoModelForSequenceClassification.from_pretrained(folder / "stages/shrunk")
    before, after = (load(place)[0] for place in (folder / "stages/quantized", folder))
    bits = stored_bits(after)
    assert bits == stored_bits(before) and {*bits.values()} == {4, 8}
    assert {row["name"]: row["bits"] for row in found["layer_bits"]["layers"]} == bits
    for name in bits:
        zero = oriented(float_one.get_submodule(name)) == 0
        stored = restored(after.get_submodule(name))
        assert 0.4 < zero.float().mean() < 0.6 and not stored[zero].any()
        assert not torch.equal(stored, restored(before.get_submodule(name)))
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(after.get_parameter(table), rounded_table(float_one.get_parameter(table), "int8"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["recovery.rank=8"], "rank would be ignored with method: qat, which has no adapters; remove it"),
        (["recovery.keep=merge", "recovery.start=weights"], "keep, start would be ignored with method: qat"),
        (["recovery={method: qat}"], "method: qat is a training; add training"),
        (["recovery.method=qad"], "recovery.method"),
        (["quantization=null"], "recovery: would be ignored: nothing is quantised; add"),
        (["quantization={bits: 16, dtype: bfloat16}"], "bits: 16 quantises nothing"),
        (["task=masked-lm"], "recovery: is for text-classification, .*, not for masked-lm"),
        (["recovery.distillation={losses: [{}], on_policy: {mix: 0.5}}"], "recovery learns from the texts alone"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(overrides: list[str], says: str):
    with pytest.raises(RecipeError, match=says):
        recipe(*overrides)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("num_train_epochs: 0", r"recovery\.training: 0 steps, and method: qat"),
        ("max_steps: 1, torch_compile: true", r"recovery\.training\.torch_compile: not with weights rounded"),
    ],
)
def test_what_a_plan_can_see_is_refused_before_anything_is_trained(own: Path, word: str, says: str):
    with pytest.raises(RecipeError, match=says):
        make_plan(recipe("recovery={method: qat, training: {use_cpu: true, " + word + "}}"))


def test_a_plan_refuses_what_training_would_not_see(own: Path):
    with pytest.raises(RecipeError, match=r"quantization\.dtype: bfloat16 rounds norms, biases and heads as well"):
        make_plan(recipe("recovery={method: qat, training: {use_cpu: true, max_steps: 1}}", "quantization.dtype=bfloat16"))


def test_embeddings_are_trained_as_they_are_stored(own: Path):
    """Rounded after the training alone, the numbers of the table would be those of a model that nobody trained."""
    words = ["quantization.embeddings=int8", "quantization.compute_dtype=bfloat16", "recovery.training.max_steps=2"]
    found = run(recipe(*words), accept_changes=["quantization", "recovery"]).report
    assert "of 14 projections and the embeddings rounded as they are stored" in found["stages"][-1]["did"][0]
    before, after = (load(FOLDER / name)[0] for name in ("stages/student", "."))
    assert found["reload"]["max_difference"] == 0.0 and recorded_dtype(after) == "int8"
    for name, table in tables(before).items():
        assert not torch.equal(rounded_table(table, "int8"), after.get_parameter(name))
    size = next(stage.bytes for stage in make_plan(recipe(*words)).stages if stage.name == "recovered")
    assert value(found["stages"][-1], "bytes_on_disk") == pytest.approx(size, rel=0.01)


def test_room_is_asked_for_for_float_checkpoints(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Checkpoints of the quantised size would not fit, hours after the run began."""
    asked: list[int] = []

    def seen(folder: Path, size: int, what: str) -> None:
        asked.append(size)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "check_free", seen)
    for strategy in ("steps", "no"):
        with pytest.raises(KeyboardInterrupt):
            run(recipe("training.save_strategy=no", f"recovery.training.save_strategy={strategy}", "output_dir=runs/new"))
    whole = next(stage.bytes for stage in make_plan(recipe()).stages if stage.name == "student")
    assert whole and asked[0] - asked[1] == 3 * whole  # steps 3 and 6, and one that is being written


def test_an_empty_section_is_one_of_adapters():
    """All defaults: the card's tags would forget them."""
    assert tags({"recovery": {}}) == ["hf-shrink", "lora"] and tags({"recovery": None}) == ["hf-shrink"]
    assert tags({"recovery": {"method": "qat"}}) == ["hf-shrink", "qat"]
