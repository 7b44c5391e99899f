"""A whole run: what it leaves, what a second call does, what it refuses, and that nothing of the user's is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_shrink import Recipe, run
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ShrinkError
from hf_shrink.plan import make_plan
from tests.project import digests, make_project, quickstart, tiny_overrides

WITHOUT_HF_SHRINK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder = sys.argv[1]
model = AutoModelForSequenceClassification.from_pretrained(folder)
tokens = AutoTokenizer.from_pretrained(folder)("the red house of the river", return_tensors="pt")
with torch.no_grad():
    logits = model(**tokens).logits
label = pipeline("text-classification", folder)("a blue stone")[0]["label"]
assert not [name for name in sys.modules if name.startswith("hf_shrink")], "hf_shrink was imported"
print(json.dumps({"logits": logits.tolist(), "label": label}))
"""


def test_stdout_is_the_report_alone_and_stderr_is_silent(project: Path):
    """A bar or a log line on stdout breaks `hf-shrink run --json | jq`."""
    report = json.loads((project / "stdout.json").read_text())
    assert report == json.loads((project / "runs/quickstart/hf_shrink_report.json").read_text())
    noise = [line for line in (project / "stderr.txt").read_text().splitlines() if "MatMul8bitLt" not in line]
    assert noise == []


def test_a_process_without_hf_shrink_gets_the_logits_of_the_model_that_was_saved(project: Path):
    """Pruned models that only their maker can load are why earlier tools died."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_shrink.models.load import load_for
    from hf_shrink.quantization.config import QuantizationConfig
    from hf_shrink.quantization.quantize import quantize

    folder = project / "runs/quickstart"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HF_SHRINK, str(folder)], capture_output=True, text=True, check=False, cwd=project
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    small = load_for("text-classification", str(folder / "stages/shrunk"), new_head=False)
    in_memory = quantize(small, QuantizationConfig(bits=8))
    tokens = AutoTokenizer.from_pretrained(folder)("the red house of the river", return_tensors="pt")
    with torch.no_grad():
        logits = in_memory(**tokens).logits
    assert (logits - torch.tensor(there["logits"])).abs().max().item() == 0.0
    assert there["label"] in {"red", "green", "blue"}
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.intermediate_size == 64


def test_every_stage_is_measured_and_the_small_model_is_smaller(project: Path):
    report = json.loads((project / "runs/quickstart/hf_shrink_report.json").read_text())
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["floor", "teacher", "student", "shrunk", "quantized", "onnx"]
    found = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in report["stages"]}
    assert found["shrunk"]["parameters"] < found["student"]["parameters"] < found["teacher"]["parameters"]
    assert found["quantized"]["bytes_on_disk"] < found["shrunk"]["bytes_on_disk"] < found["teacher"]["bytes_on_disk"]
    assert found["quantized"]["macs"] == found["shrunk"]["macs"] < found["student"]["macs"]
    assert "accuracy" in found["floor"] and "parameters" not in found["floor"]
    for stage in report["stages"]:
        assert all(m["unit"] and isinstance(m["value"], int | float) for m in stage["measurements"]), stage["name"]


def test_the_plan_is_right_to_the_parameter_and_to_one_percent_of_the_bytes(own: Path):
    """A plan that is off sends people to the wrong machine."""
    plan = {stage.name: stage for stage in make_plan(quickstart()).stages}
    report = json.loads((own / "runs/quickstart/hf_shrink_report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] + ["report"] == list(plan)
    for stage in report["stages"]:
        values = {m["name"]: m["value"] for m in stage["measurements"]}
        if "parameters" in values:
            assert plan[stage["name"]].parameters == values["parameters"]
            assert plan[stage["name"]].bytes == pytest.approx(values["bytes_on_disk"], rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        (["pruning.0.end_step=5000"], RecipeError, "5000"),
        (["pruning.0.target_modules=[ouput.dense]"], RecipeError, "matches 0 of"),
        (["optimization.freeze=[embedings]"], RecipeError, "embeddings"),
        (["student.layers=7"], RecipeError, "6"),
        (["training={learning_rate: 1.0e-3, lr_scheduler_type: sideways}"], RecipeError, "training"),
        (["data.text_column=txt"], MismatchError, "text"),
        (["model=missing/folder/here", "student.start=model"], ShrinkError, "missing"),
        (["quantization={bits: 8, skip_modules: [nothing]}"], RecipeError, "skip_modules"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained_or_written(
    own: Path, overrides: list[str], error: type[ShrinkError], says: str
):
    """Bad input found after the training costs the user the training."""
    before = digests(own)
    with pytest.raises(error, match=says) as caught:
        run(quickstart(*overrides, "output_dir=runs/new", "measurement.memory=false"))
    assert digests(own) == before and not (own / "runs/new").exists()
    assert len(str(caught.value).splitlines()) <= 3


def test_a_non_finite_weight_is_found_in_the_weights(own: Path):
    """A NaN in a query weight gives finite logits on a CPU: it has to be looked for."""
    from safetensors.torch import load_file, save_file

    path = own / "base/model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("query.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ShrinkError, match=r"query\.weight") as caught:
        run(quickstart("output_dir=runs/new", "measurement.memory=false"))
    assert caught.value.code == 3


def test_a_teacher_taken_as_it_comes_and_no_quantization(own: Path):
    """The other road through the stages: nothing to fine-tune, nothing to quantise."""
    outcome = run(
        quickstart(
            "teacher={model: runs/quickstart/stages/teacher}",
            "model=runs/quickstart/stages/teacher",
            "quantization=null",
            "measurement.floor=null",
            "output_dir=runs/new",
            "measurement.memory=false",
        )
    )
    assert [stage["name"] for stage in outcome.report["stages"]] == ["teacher", "student", "shrunk"]
    assert outcome.report["tier"] == "stock"


def test_plain_training_without_teacher_or_pruning(own: Path):
    outcome = run(
        quickstart(
            "teacher=null",
            "distillation=null",
            "pruning=[]",
            "student={start: model}",
            "quantization=null",
            "output_dir=runs/new",
            "measurement.memory=false",
        )
    )
    assert [stage["name"] for stage in outcome.report["stages"]] == ["floor", "student"]


def test_half_precision_is_a_way_to_store(own: Path):
    outcome = run(quickstart("quantization={bits: 16, dtype: bfloat16}", "output_dir=runs/new", "measurement.memory=false"))
    sizes = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in outcome.report["stages"]}
    assert sizes["quantized"]["bytes_on_disk"] < 0.6 * sizes["shrunk"]["bytes_on_disk"]


def test_a_teacher_with_the_labels_in_another_order_teaches_and_is_judged_by_name(own: Path):
    """By index a perfect teacher would teach the wrong classes, and its accuracy would be that of another model."""
    from hf_shrink.models.load import load_for

    model = load_for("text-classification", "runs/quickstart/stages/teacher", new_head=False)
    names = [model.config.id2label[i] for i in range(3)][::-1]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    model.classifier.weight.data, model.classifier.bias.data = (
        v.flip(0) for v in (model.classifier.weight, model.classifier.bias)
    )
    shutil.copytree("runs/quickstart/stages/teacher", "turned")
    model.save_pretrained("turned")
    turned = quickstart(
        "teacher={model: turned}",
        "student={layers: 3}",
        "quantization=null",
        "output_dir=runs/new",
        "measurement.memory=false",
        "measurement.floor=null",
    )
    assert any("reordered by name" in line for line in make_plan(turned).stages[0].does)
    before = json.loads((own / "runs/quickstart/hf_shrink_report.json").read_text())
    accuracies = [
        next(m["value"] for m in stage["measurements"] if m["name"] == "accuracy")
        for report in (before, run(turned).report)
        for stage in report["stages"]
        if stage["name"] == "teacher"
    ]
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1]


def test_the_plan_of_a_model_with_layers_of_different_widths_is_right(own: Path):
    """A stock config cannot say them: built from it alone, the plan would speak of another model."""
    from hf_shrink import PruningConfig, prune
    from hf_shrink.loading.save import save
    from hf_shrink.models.load import load_for, load_tokenizer

    dense = load_for("text-classification", "runs/quickstart/stages/teacher", new_head=False)
    odd = prune(dense, PruningConfig(structure="ffn", sparsity=0.5, target_modules=["layer.0.intermediate.dense"]))
    assert save(odd, own / "odd", tokenizer=load_tokenizer("base")) == "plugin"
    plan = make_plan(
        quickstart(
            "model=odd", "teacher=null", "distillation=null", "pruning=[]", "student={start: model}", "quantization=null"
        )
    )
    student = next(stage for stage in plan.stages if stage.name == "student")
    assert student.parameters == odd.num_parameters() < dense.num_parameters()
    assert student.bytes == pytest.approx((own / "odd/model.safetensors").stat().st_size, rel=0.001)


def test_the_plan_of_a_start_in_half_precision_is_that_of_the_float_model_it_trains(own: Path):
    """Stages are trained and saved in float32, whatever precision the start was stored in."""
    from hf_shrink.models.load import load_for

    load_for(
        "text-classification", "base", new_head=True, label_names=("red", "green", "blue"), dtype="bfloat16"
    ).save_pretrained("base")
    sizes = {stage.name: stage.bytes for stage in make_plan(quickstart()).stages}
    written = own / "runs/quickstart/stages/student/model.safetensors"
    assert sizes["student"] == pytest.approx(written.stat().st_size, rel=0.01)


def test_a_quantised_start_is_refused_by_the_plan(own: Path):
    with pytest.raises(RecipeError, match="8 bits"):
        make_plan(
            quickstart(
                "model=runs/quickstart", "student={layers: 2}", "teacher=null", "distillation=null", "output_dir=runs/new"
            )
        )


def test_masks_are_not_counted_as_weights_of_the_student(own: Path):
    """One byte a weight: the file beside the model would make it a quarter larger than it is."""
    outcome = run(
        quickstart(
            "teacher=null",
            "distillation=null",
            "student={start: model}",
            "pruning=[{structure: unstructured, sparsity: 0.5, begin_step: 0, end_step: 2}]",
            "quantization={bits: 16, dtype: bfloat16}",
            "measurement.floor=null",
            "output_dir=runs/new",
            "measurement.memory=false",
        )
    )
    sizes = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in outcome.report["stages"]}
    assert sizes["student"]["bytes_on_disk"] == (own / "runs/new/stages/student/model.safetensors").stat().st_size


def test_a_start_that_cannot_be_loaded_is_found_before_the_teacher_is_trained(own: Path):
    """An hour of fine-tuning, and then the student's file turns out to be broken."""
    shutil.copytree("base", "other")
    Path("other/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(IntegrityError, match="damaged"):
        run(quickstart("model=other", "student={layers: 3}", "output_dir=runs/new", "measurement.memory=false"))
    assert not (own / "runs/new/stages/teacher").exists()


def test_two_processes_end_with_one_artefact(own: Path):
    """Two ranks that both write leave a folder that is neither's."""
    words = ["run", "recipes/quickstart.yaml", "--set", "output_dir=runs/two", "--set", "measurement.memory=false", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hf_shrink", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=own,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["reload"]["max_difference"] == 0.0 and report["stages"][-1]["name"] == "onnx"


def test_a_project_from_scratch_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`make_project` and the quickstart's overrides stay in step with each other."""
    monkeypatch.chdir(make_project(tmp_path / "p"))
    root = Path(__file__).parent.parent
    assert make_plan(Recipe.from_yaml(root / "recipes/quickstart.yaml", overrides=tiny_overrides(Path()))).stages
