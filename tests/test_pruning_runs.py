"""Whole runs that prune: what is cut before, during and after training, and what the folder then holds."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_shrink import Recipe, run
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.models.load import load_for
from hf_shrink.plan import make_plan
from hf_shrink.pruning.layers import drop_layers, layers_to_keep
from hf_shrink.resume import open_folder
from tests.project import make_project

TRAINING = "{max_steps: 3, per_device_train_batch_size: 4, use_cpu: true}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny project as the current folder."""
    monkeypatch.chdir(make_project(tmp_path / "p", layers=4))
    return tmp_path / "p"


def recipe(pruning: str, *more: str) -> Recipe:
    text = f"""
version: 1
task: text-classification
output_dir: out
model: base
data: {{dataset: data, max_length: 32}}
teacher: {{model: base, training: {TRAINING}}}
student: {{start: teacher}}
distillation: {{alpha: 0.5, losses: [{{loss: forward_kl}}]}}
training: {TRAINING}
measurement: {{batch_sizes: [1], length: 8, runs: 3, bootstrap: 100, threads: 1, memory: false}}
pruning:
{pruning}
"""
    return Recipe.from_text(text, overrides=more)


def sizes(plan) -> dict[str, int]:
    return {stage.name: stage.parameters for stage in plan.stages if stage.parameters is not None}


LEARNT = "teacher.training={max_steps: 80, per_device_train_batch_size: 8, learning_rate: 5.0e-3, use_cpu: true}"
LAYERS = "  - {structure: layers, sparsity: 0.5}\n"
EVERYTHING = """
  - {structure: layers, sparsity: 0.5, criterion: block_influence}
  - {structure: heads, sparsity: 0.5, criterion: fisher, when: before, reconstruct: true}
  - {structure: ffn, sparsity: 0.5, criterion: taylor, begin_step: 1}
  - {structure: vocabulary, min_count: 1, round_to: 4}
"""


def test_the_plan_is_what_a_run_leaves_whatever_is_cut_when(folder: Path):
    """A plan that promises another size than the folder has is worse than none."""
    words = recipe(EVERYTHING)
    plan = make_plan(words)
    report = run(words).report
    found = {s["name"]: {m["name"]: m["value"] for m in s["measurements"]} for s in report["stages"]}
    assert {name: found[name]["parameters"] for name in sizes(plan)} == sizes(plan)
    for stage in plan.stages:
        if stage.bytes is not None:
            assert stage.bytes == pytest.approx(found[stage.name]["bytes_on_disk"], rel=0.02)
    model = AutoModelForSequenceClassification.from_pretrained("out")
    layer = model.bert.encoder.layer[1]
    assert len(model.bert.encoder.layer) == 2 and layer.attention.self.num_attention_heads == 2
    assert layer.intermediate.dense.out_features == 64
    assert "drops 2 of 4 layers, by block_influence" in json.dumps(report)


def test_tokens_that_the_training_texts_lack_leave_model_and_tokenizer(folder: Path):
    """The words of the training texts and their labels must come out as before; a smaller table alone would shift every id."""
    words = recipe("  - {structure: vocabulary, min_count: 1, round_to: 1}", "data.train_samples=3")
    report = run(words).report
    before, after = (AutoTokenizer.from_pretrained(place) for place in ("out/stages/student", "out"))
    student, small = (AutoModelForSequenceClassification.from_pretrained(p).eval() for p in ("out/stages/student", "out"))
    assert len(after) == small.config.vocab_size < student.config.vocab_size == len(before)
    seen = [
        text
        for text in Path("data/train.csv").read_text().splitlines()[1:]
        if set(text.split(",")[0].split()) <= set(after.vocab)
    ]
    assert seen, "some of the training texts must be made of the kept words alone"
    for text in seen:
        with torch.no_grad():
            logits = [m(**t(text.split(",")[0], return_tensors="pt")).logits for m, t in ((student, before), (small, after))]
        assert torch.equal(*logits)
    shrunk = next(stage for stage in report["stages"] if stage["name"] == "shrunk")
    assert {"accuracy", "bytes_on_disk"} <= {m["name"] for m in shrunk["measurements"]}


def test_what_is_pruned_before_training_stays_pruned_through_it(folder: Path):
    """Zeros that grow back make a model that is called sparse and is not."""
    run(recipe("  - {sparsity: 0.5, criterion: wanda, when: before}"))
    model = AutoModelForSequenceClassification.from_pretrained("out")
    weights = [m.weight for m in model.bert.encoder.layer.modules() if isinstance(m, torch.nn.Linear)]
    assert [int((w == 0).sum()) for w in weights] == [w.numel() // 2 for w in weights]


@pytest.mark.parametrize(
    ("pruning", "more", "says"),
    [
        (
            "  []",
            "student={start: teacher, layers: [0, 2], reconstruct: true}",
            "each fitted to stand for those up to the next",
        ),
        (
            "  - {structure: layers, sparsity: 0.5, reconstruct: true}",
            "seed=0",
            "by magnitude, and fits the others to stand for",
        ),
    ],
    ids=["student", "pruning"],
)
def test_layers_are_fitted_to_stand_for_those_that_left_before_the_student_learns(folder: Path, pruning, more, says):
    """A word that is planned and not done would only be seen as a student that needs longer."""
    words = recipe(pruning, more, "training.learning_rate=0.0", "training.max_steps=1")
    report = run(words).report
    assert says in json.dumps(report) and says in json.dumps([stage.does for stage in make_plan(words).stages])
    teacher, student = (load_for("text-classification", f"out/stages/{s}", new_head=False) for s in ("teacher", "student"))
    kept = [0, 2] if "student" in more else layers_to_keep(teacher, words.pruning[0], "pruning.0")
    texts = [line.rsplit(",", 1)[0] for line in Path("data/train.csv").read_text().splitlines()[1:]]
    batch = dict(AutoTokenizer.from_pretrained("base")(texts[:64], return_tensors="pt", padding=True))
    with torch.no_grad():
        whole, plain, fitted = (
            m.eval()(**batch, output_hidden_states=True).hidden_states[-1][batch["attention_mask"].bool()]
            for m in (teacher, drop_layers(teacher, kept), student)
        )
    assert (fitted - whole).square().mean() < 0.5 * (plain - whole).square().mean()


def test_a_budget_spent_by_sensitivity_is_kept_in_all(folder: Path):
    """Half of all neurons, though not half of each layer's; the loader is told the widths."""
    run(recipe("  - {structure: ffn, sparsity: 0.5, allocation: sensitivity, end_step: 2}", LEARNT))
    import hf_shrink  # noqa: F401 - layers of different widths need it

    model = AutoModelForSequenceClassification.from_pretrained("out")
    widths = [layer.intermediate.dense.out_features for layer in model.bert.encoder.layer]
    assert sum(widths) <= 4 * 64 and sum(widths) >= 4 * 64 - 8 and all(width % 8 == 0 for width in widths)


def test_a_budget_that_nothing_can_share_out_is_refused_before_the_teacher_is_trained(folder: Path):
    """It was said when hours of training were spent; so was a head that is not there, whatever the config calls it."""
    words = recipe("  - {structure: ffn, sparsity: 0.5, allocation: sensitivity, end_step: 2}", "student={start: model}")
    with pytest.raises(MismatchError, match=r"^pruning\.0\.allocation: sensitivity: 'base' is a Bert\w+, its head .* is new"):
        make_plan(words)
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    make_plan(words)
    with pytest.raises(MismatchError, match="knows hardly more than chance"):
        run(words)
    assert not Path("out/stages/teacher").exists() and not Path("out/stages/.teacher").exists()


def test_widths_for_four_bits_are_multiples_of_their_tiles(folder: Path):
    """Left at a multiple of 8, four-bit kernels refuse the layers or get them wrong."""
    words = recipe("  - {structure: ffn, sparsity: 0.4, end_step: 2}", "quantization={bits: 4}")
    lines = make_plan(words).rich().plain
    assert "keeps 256 of 512 neurons in 4 places, in multiples of 64" in lines
    assert words.effective_pruning()[0].round_to == 64 and words.pruning[0].round_to is None


@pytest.mark.parametrize(("bits", "stays"), [(8, True), (4, False)])
def test_bits_that_change_the_widths_reach_the_student(folder: Path, bits: int, stays: bool):
    """Accepted as a change of storage alone, 4 bits kept widths of 8: layers stayed in float, and the plan said others."""
    before = recipe("  - {structure: ffn, sparsity: 0.4, end_step: 2}")
    work = open_folder(before, overwrite=False, accept_changes=())
    work.begin(before.model_dump(mode="json", exclude_unset=True), {})
    work.write_stage("student", lambda fresh: {"bytes": (fresh / "model.safetensors").write_bytes(b"x")})
    work.close()
    after = recipe("  - {structure: ffn, sparsity: 0.4, end_step: 2}", f"quantization={{bits: {bits}}}")
    work = open_folder(after, overwrite=False, accept_changes=["quantization"])
    assert (work.result("student") is not None) is stays
    work.close()


@pytest.mark.parametrize(
    ("pruning", "more", "warns"),
    [
        (
            "  - {sparsity: 0.5}",
            (),
            ("nothing in this recipe makes the model faster", "nothing in this recipe makes the file smaller"),
        ),
        (
            "  - {structure: n_of_m, pattern: [2, 4]}",
            ("quantization={bits: 8}",),
            ("nothing in this recipe makes the model faster",),
        ),
        ("  - {structure: ffn, sparsity: 0.5}", (), ()),
        ("  - {sparsity: 0.5}", ("student.layers=2",), ()),
        *(
            (
                f"  - {{structure: {structure}, sparsity: {0.5 * bool(more)}}}",
                more,
                ("nothing in this recipe makes the model faster", "nothing in this recipe makes the file smaller"),
            )
            for structure, more in (("ffn", ()), ("heads", ()), ("layers", ()), ("block, block: [8, 8]", ("student.layers=4",)))
        ),
    ],
)
def test_the_plan_says_when_nothing_gets_smaller_or_faster(folder: Path, pruning, more, warns):
    """Sparsity that makes nothing smaller or faster is what people complained of most."""
    found = make_plan(recipe(pruning, *more)).warnings
    assert len(found) == len(warns) and all(warning.startswith(start) for warning, start in zip(found, warns, strict=True))


@pytest.mark.parametrize(
    ("pruning", "says"),
    [
        ("  - {structure: layers, sparsity: 0.9}", "4 of 4 layers"),
        ("  - {structure: heads, sparsity: 0.9}", "4 of 4 heads; at least 1 must stay"),
        ("  - {structure: n_of_m, pattern: [2, 5]}", r"has 64 inputs \[64, 64\], which 5 does not divide"),
        ("  - {structure: vocabulary, sparsity: 0.99}", "at most"),
        ("  - {sparsity: 0.3, when: before, criterion: wanda}\n  - {sparsity: 0.8}", "both claim"),
        ("  - {structure: ffn, sparsity: 0.5, reconstruct: true}", "reconstruct changes weights once, before training"),
        ("  - {structure: ffn, sparsity: 0.5, criterion: taylor, schedule: constant}", "needs steps to record"),
        (
            "  - {sparsity: 0.5, criterion: wanda, when: before, target_modules: [classifier]}",
            "not a projection in a transformer layer",
        ),
        ("  - {structure: ffn, sparsity: 0.5, when: before, end_step: 2}", "end_step would be ignored with when: before"),
        ("  - {structure: hidden, sparsity: 0.5, criterion: wanda}", "wanda needs data, and structure: hidden"),
        ("  - {structure: layers, sparsity: 0.5, criterion: mutual_information}", "scores heads or neurons"),
        ("  - {structure: ffn, sparsity: 0.97, allocation: sensitivity}", "0.97 of the parameters .* at most 0.938 can go"),
        (
            "  - {structure: ffn, sparsity: 0.97, allocation: sensitivity, budget: latency, when: before}",
            "at most 0.938 can go",
        ),
        (f"{LAYERS}  - {{structure: ffn, sparsity: 0.5, end_step: 5000}}", r"^pruning\.1\.end_step"),
        (
            f"{LAYERS}  - {{sparsity: 0.5, target_modules: [layer.3.output.dense]}}",
            "names layers by number, but pruning.0 drops",
        ),
        (f"{LAYERS}  - {{sparsity: 0.5, target_modules: [nosuch]}}", r"^pruning\.1\.target_modules"),
        (
            f"{LAYERS}  - {{structure: ffn, sparsity: 0.5, when: before, target_modules: [nosuch]}}",
            r"^pruning\.1\.target_modules",
        ),
        (
            f"{LAYERS}  - {{structure: vocabulary, min_count: 1}}\n"
            "  - {sparsity: 0.5, criterion: taylor, schedule: constant}",
            r"^pruning\.2\.begin",
        ),
    ],
)
def test_what_cannot_be_meant_is_found_before_anything_is_trained(folder: Path, pruning, says):
    with pytest.raises(RecipeError, match=says):
        run(recipe(pruning))
    assert not Path("out/stages").exists()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{sparsity: 0.5, criterion: movement, begin_step: 1}", "movement reads gradients, but .* is frozen"),
        ("{sparsity: 0.5, begin_step: 1, penalty: {kind: l1, weight: 0.1}}", "is frozen, so a penalty changes nothing"),
    ],
)
def test_frozen_weights_that_have_to_be_trained_are_found_before_the_teacher_is(folder: Path, entry, says):
    """A penalty without a gradient only makes the logged loss look worse."""
    with pytest.raises(RecipeError, match=says):
        run(recipe(f"  - {entry}", "optimization.freeze=[encoder]"))
    assert not Path("out/stages").exists()
