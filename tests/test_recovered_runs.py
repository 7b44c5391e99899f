"""``recovery`` in a recipe. What these prevent: a card with the adapter's numbers over a folder that loads without it, a merge
that makes the model worse, an adapter that stays behind after a roll-back, and a training that begins anew."""

import dataclasses
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_shrink import Recipe, gated, recovering, run
from hf_shrink.errors import MismatchError, QualityError, RecipeError
from hf_shrink.files import sha256
from hf_shrink.measurement.gate import judge_gate
from hf_shrink.measurement.subjects import load
from hf_shrink.models.load import load_model
from hf_shrink.plan import make_plan
from hf_shrink.publishing.selection import select
from hf_shrink.training.trainer import ShrinkTrainer
from hf_shrink.verification import verify_model
from tests.lossy import FOLDER, copied, lossy_run, recipe_of, report, value
from tests.project import make_project, tiny_overrides

ROOT = Path(__file__).parent.parent
WORDS = "max_steps: 6, per_device_train_batch_size: 8, learning_rate: 1.0e-3, use_cpu: true, save_steps: 2"


def recipe(*overrides: str) -> Recipe:
    return recipe_of("{rank: 4, calibration_rows: 16}", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose base model loses something in 4 bits, with a finished run."""
    return lossy_run(tmp_path_factory.mktemp("recovered"), recipe())


@pytest.fixture
def own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    return copied(finished, tmp_path, monkeypatch)


def test_the_adapter_lies_beside_the_model_and_every_number_is_about_both(own: Path):
    found = report()
    assert [stage["name"] for stage in found["stages"]] == ["student", "quantized", "recovered"]
    quantized, recovered = found["stages"][1:]
    assert found["tier"] == "adapter" and found["reload"]["max_difference"] == 0.0
    files = [FOLDER / "model.safetensors", FOLDER / "adapter/adapter_model.safetensors"]
    assert value(recovered, "bytes_on_disk") == sum(file.stat().st_size for file in files)
    assert value(quantized, "bytes_on_disk") == files[0].stat().st_size
    before, after = found["recovery"]["kl"]
    assert 0 < after < before and found["recovery"]["weight_error"][1] < found["recovery"]["weight_error"][0]
    model, _ = load(FOLDER)  # the second way to the measured perplexity: the loss of transformers, block by block
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = [path.read_text() for path in sorted(Path("data/test").glob("*.txt"))]
    stream = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    total = count = 0.0
    with torch.no_grad():
        for block in (torch.tensor([stream[at : at + 16]]) for at in range(0, len(stream), 16)):
            if block.shape[1] > 1:
                total += float(model(input_ids=block, labels=block).loss) * (block.shape[1] - 1)
                count += block.shape[1] - 1
    assert math.exp(total / count) == pytest.approx(value(recovered, "perplexity"), rel=1e-4)


def test_a_teacher_without_its_adapter_is_no_teacher(own: Path):
    """Loading takes the model alone: the student would learn from the one that recovery was to make better."""
    words = ["output_dir=runs/new", "teacher={model: runs/lm}", "distillation={losses: [{loss: forward_kl}]}"]
    with pytest.raises(MismatchError, match=r"the adapter in adapter/adapter_config\.json would be left out"):
        make_plan(recipe(*words))
    with pytest.raises(MismatchError, match="would be left out"):
        load_model("runs/lm")


def test_what_the_card_says_is_how_it_loads(own: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    """Also by peft's own way; and the code without the adapter is another model."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # to compare what is computed in float32
    card = (FOLDER / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None and "load_adapter" in code[1] and "mean KL of the answers" in card and "- lora\n" in card
    space: dict[str, Any] = {}
    exec(code[1].replace("path/to/this/folder", str(FOLDER)), space)
    ids = torch.randint(4, 20, (2, 12), generator=torch.Generator().manual_seed(0))
    base = AutoModelForCausalLM.from_pretrained(FOLDER)
    with torch.no_grad():
        plain = base(ids).logits
        peft = PeftModel.from_pretrained(base, str(FOLDER), subfolder="adapter").eval()(ids).logits
        assert torch.equal(space["base"](ids).logits, peft) and torch.equal(load(FOLDER)[0](ids).logits, peft)
    assert not torch.allclose(plain, peft)


def test_it_is_planned_verified_and_published_whole(own: Path):
    planned = {stage.name: stage for stage in make_plan(recipe()).stages}
    stages = {stage["name"]: stage for stage in report()["stages"]}
    for name in ("quantized", "recovered"):
        assert planned[name].bytes == pytest.approx(value(stages[name], "bytes_on_disk"), rel=0.01)
        assert planned[name].parameters == value(stages[name], "parameters")
    assert planned["recovered"].does == tuple(stages["recovered"]["did"])
    assert any("other than zero, as reported" in line for line in verify_model(str(FOLDER)).passed)
    names = {upload.name for upload in select(FOLDER).uploads}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names
    assert str(own) not in (FOLDER / "adapter/adapter_config.json").read_text()


def test_another_run_makes_the_same_bytes_and_a_finished_one_does_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    run(recipe("output_dir=runs/other"))
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"):
        assert sha256(FOLDER / name) == sha256(Path("runs/other") / name)
    monkeypatch.setattr(recovering, "_write_recovered", lambda *_: pytest.fail("made again"))
    run(recipe())


def test_a_gate_that_the_adapter_misses_leaves_the_quantised_model_alone(own: Path, monkeypatch: pytest.MonkeyPatch):
    def judge(*args: Any, **words: Any) -> Any:
        found = judge_gate(*args, **words)
        held = (dataclasses.replace(stage, held=stage.name != "recovered") for stage in found.stages)
        return dataclasses.replace(found, stages=tuple(held))

    monkeypatch.setattr(gated, "judge_gate", judge)
    found = run(recipe("gate={keep: 0.5, on_miss: roll_back}")).report
    assert found["gate"]["model"] == "quantized" and list(found["gate"]["dropped"]) == ["recovered"]
    assert found["tier"] == "stock" and "recovery" not in found and not (FOLDER / "adapter/adapter_config.json").exists()
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/quantized/model.safetensors")
    assert "load_adapter" not in (FOLDER / "README.md").read_text()


def test_training_goes_on_after_a_kill_to_the_same_adapter(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Another recovery needs neither the student nor its quantising again."""
    shutil.copytree(FOLDER, "runs/whole")
    trained = "recovery={rank: 4, start: none, training: {" + WORDS + "}}"
    stands = [(FOLDER / f"stages/{stage}/config.json").stat().st_mtime_ns for stage in ("student", "quantized")]
    steps: list[int] = []
    real = ShrinkTrainer.training_step

    def step(self: Any, model: Any, *args: Any, **words: Any) -> Any:
        assert hasattr(model, "peft_config")
        steps.append(self.state.global_step)
        if steps[-1] == 5 and steps.count(5) == 1:
            raise KeyboardInterrupt
        return real(self, model, *args, **words)

    monkeypatch.setattr(ShrinkTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(trained), accept_changes=["recovery"])
    found = run(recipe(trained)).report
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5] and "took" in found["stages"][-1]["did"][-1]
    run(recipe(trained, "output_dir=runs/whole"), accept_changes=["recovery"])
    name = "adapter/adapter_model.safetensors"
    assert sha256(FOLDER / name) == sha256(Path("runs/whole") / name)
    assert not list((FOLDER / "stages").glob(".*"))
    assert stands == [(FOLDER / f"stages/{stage}/config.json").stat().st_mtime_ns for stage in ("student", "quantized")]


def test_a_merge_is_stored_as_before_or_refused_where_it_helps_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    found = run(recipe("recovery.keep=merge"), accept_changes=["recovery.keep"]).report
    facts = found["recovery"]
    assert facts["kl"][1] < facts["kl"][0] and facts["kl_of_adapters"] < facts["kl"][1] and found["tier"] == "stock"
    card = (FOLDER / "README.md").read_text()
    assert not (FOLDER / "adapter/adapter_config.json").exists()
    assert "after the second quantising" in card and f"{facts['kl'][1]:.3g} after" in card
    assert value(found["stages"][2], "bytes_on_disk") == pytest.approx(value(found["stages"][1], "bytes_on_disk"), rel=0.001)
    monkeypatch.setattr(recovering, "merged", lambda adapted, _: spoiled(adapted))
    with pytest.raises(QualityError, match=r"(?s)merged into quantised weights.*without recovery it is.*keep: adapter"):
        run(recipe("recovery={rank: 5, keep: merge}"), accept_changes=["recovery"])


def spoiled(adapted: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "stages/student")
    model.model.layers[0].self_attn.q_proj.weight.data.mul_(-1)
    return model


def test_a_classifier_with_a_smaller_vocabulary_and_layers_of_two_widths_is_recovered(tmp_path: Path, monkeypatch: Any):
    """Calibration rows in the words of the large tokenizer would name tokens that are gone."""
    monkeypatch.chdir(make_project(tmp_path / "p"))
    words = [word for word in tiny_overrides(Path(), gradual=False) if not word.startswith("teacher.")]
    found = run(
        Recipe.from_yaml(
            ROOT / "recipes/quickstart.yaml",
            [
                *(*words, "teacher=null", "distillation=null", "student={start: model, layers: 2}", "measurement.floor=null"),
                "pruning=[{structure: vocabulary, min_count: 1}]",
                "quantization={bits: auto, budget: {bits_per_weight: 7}, calibration_rows: 8}",
                "recovery={rank: 2, calibration_rows: 8}",
            ],
        )
    ).report
    assert found["stages"][-1]["name"] == "recovered"
    assert found["tier"] == "adapter" and found["recovery"]["base_tier"] == "plugin"
    assert "import hf_shrink" in (tmp_path / "p" / found["recipe"]["output_dir"] / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["quantization=null"], "recovery: would be ignored: nothing is quantised; add"),
        (["quantization={backend: onnx}"], "recovery: a graph takes no adapters; use method: qat, add an entry"),
        (["quantization={bits: 16, dtype: bfloat16}"], "bits: 16 quantises nothing"),
        (["recovery={start: none}"], "gives nothing back; add training"),
        (["recovery={distillation: {losses: [{}]}}"], "would be ignored without training"),
        (["recovery={training: {max_stepz: 1}}"], "unknown key 'max_stepz'.* 'max_steps'"),
        (
            ["recovery={training: {max_steps: 1}, distillation: {losses: [{loss: hidden_mse}]}}"],
            "reads hidden, but what came back shows in the logits",
        ),
        (["recovery={training: {}, distillation: {losses: [{}], combine: mean}}"], "there is one teacher, the float student"),
        (["recovery={rank: 0}"], "rank"),
        (["task=masked-lm"], "recovery: is for text-classification, .*, not for masked-lm"),
        (
            ["recovery={training: {}, distillation: {losses: [{}], on_policy: {mix: 0.5}}}"],
            "recovery learns from the texts alone",
        ),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(overrides: list[str], says: str):
    with pytest.raises(RecipeError, match=says):
        recipe(*overrides)


def test_a_budget_that_quantises_nothing_is_refused_before_anything_runs(own: Path):
    """It failed behind the quantised stage, in words about a function that no recipe calls."""
    with pytest.raises(RecipeError, match=r"recovery: would be ignored: under quantization\.budget every layer stays in float"):
        make_plan(recipe("quantization={bits: auto, budget: {bits_per_weight: 32}}"))
    stages = make_plan(recipe("quantization={bits: auto, budget: {bits_per_weight: 7}}")).stages
    assert "recovered" in [stage.name for stage in stages]


def test_training_is_for_one_process(own: Path, monkeypatch: pytest.MonkeyPatch):
    """The others have gone home by then; the leader would wait for them for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hf_shrink.plan._steps", lambda *_: 1)  # transformers would look for the others
    with pytest.raises(RecipeError, match=r"recovery\.training: trains in one process, and there are 2"):
        make_plan(recipe("recovery={training: {max_steps: 1, use_cpu: true}}"))
