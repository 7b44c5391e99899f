"""Sensitivity of a recipe's student: on which model, on which rows, and what is spent by it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_shrink import sensitivity as module
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import TokenizedSplits, tokenize
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.files import files_below, sha256
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.sensitivity import sensitivity
from hf_shrink.recipe import Recipe
from hf_shrink.scoring import score_on
from hf_shrink.sensitivity import calibration_rows, fractions_for, measure_sensitivity, timer_of
from tests.project import make_project
from tests.tiny import COLOURS, colour_tokens, tiny_classifier, tiny_tokenizer

TRAINED = "{max_steps: 2, use_cpu: true}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project as the current folder."""
    make_project(tmp_path, layers=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(*overrides: str) -> Recipe:
    text = f"""
version: 1
task: text-classification
model: {Path.cwd()}/base
output_dir: out
data: {{dataset: {Path.cwd()}/data, max_length: 32}}
student: {{start: teacher}}
teacher: {{model: {Path.cwd()}/base, training: {TRAINED}}}
training: {TRAINED}
"""
    return Recipe.from_text(text, overrides=overrides)


def finish(ran: Recipe, **stages: torch.nn.Module) -> None:
    """What a run of ``ran`` leaves of these stages."""
    folder = Path(ran.output_dir)
    for name, model in stages.items():
        model.save_pretrained(folder / "stages" / name)
    plain = ran.model_dump(mode="json", exclude_unset=True)
    done = {name: {"files": {}, "result": {}} for name in stages}
    manifest = {"schema_version": 1, "recipe": plain, "inputs": {}, "stages": done}
    (folder / "hf_shrink_manifest.json").write_text(json.dumps(manifest))


def classifier(seed: int = 0, **more):
    return tiny_classifier(hidden=64, ffn=128, seed=seed, **more)


def by_hand(model, rows: Dataset, names: Sequence[str] = COLOURS) -> float:
    """Mean log-likelihood by torch, a row at a time and without padding; labels are indices into ``names``."""
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits
        losses.append(
            float(torch.nn.functional.cross_entropy(logits, torch.tensor([model.config.label2id[names[row["labels"]]]])))
        )
    return -float(np.mean(losses))


def validation() -> tuple[Dataset, Sequence[str]]:
    """Its rows, and the names of the classes in the order of their labels."""
    splits = load_splits(recipe().data)
    return tokenize(splits, tiny_tokenizer(), 32).validation, splits.label_names


def test_the_run_s_teacher_is_measured_on_validation_rows_and_no_file_changes(home: Path):
    """Losses of an untrained start, or of test rows, would look like any others."""
    teacher = classifier(seed=3)
    finish(recipe(), teacher=teacher, student=classifier(seed=4))
    finish(recipe("pruning=[{structure: ffn, sparsity: 0.5}]"), teacher=teacher, student=classifier(seed=4))
    before = {path: sha256(path) for path in files_below(home)}
    found = measure_sensitivity(recipe("pruning=[{structure: ffn, sparsity: 0.5}]"), plots=home / "pictures")
    assert found.dense == pytest.approx(by_hand(teacher, *validation()), abs=1e-5)
    assert found.words.samples == 16 and found.words.setting == "validation split of 16 rows, seed 0"
    assert "measured on teacher" in found.notes and {"accuracy_percent"} == found.others.keys()
    assert {(p.structure, p.removed) for p in found.points} == {("ffn", 32), ("ffn", 64), ("ffn", 96)}
    after = {path: sha256(path) for path in files_below(home)}
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {"sensitivity.png", "sensitivity.svg"}


def test_a_student_that_lost_nothing_is_measured_before_its_teacher(home: Path):
    """It is what would be pruned next; one that lost half already says nothing of the half that is gone."""
    teacher, student = classifier(seed=3), classifier(seed=4)
    finish(recipe(), teacher=teacher, student=student)
    found = measure_sensitivity(recipe(), fractions=[0.5], rows=5)
    assert "measured on student" in found.notes and found.words.samples == 5
    assert {p.structure for p in found.points} == {"ffn", "heads", "layers", "hidden"} and len(found.points) == 7
    assert "measured on teacher" in measure_sensitivity(recipe("training.max_steps=3"), fractions=[0.5], rows=5).notes
    assert "measured on teacher" in measure_sensitivity(recipe("student.layers=1"), fractions=[0.5], rows=5).notes


def test_layers_that_the_student_drops_are_not_measured(home: Path):
    teacher = classifier(seed=3)
    finish(recipe(), teacher=teacher)
    found = measure_sensitivity(recipe("student.layers=[1]"), fractions=[0.5])
    assert {p.layer for p in found.points} == {0, None} and found.dense != pytest.approx(by_hand(teacher, *validation()))


def test_a_new_head_is_refused_with_what_to_do(home: Path):
    """Losses from chance to chance are noise with four digits."""
    with pytest.raises(MismatchError, match=r"base.*weights do not fit[\s\S]*Run the recipe first"):
        measure_sensitivity(recipe())
    classifier(labels=("up", "down", "left")).save_pretrained(home / "other")
    tiny_tokenizer().save_pretrained(home / "other")
    with pytest.raises(MismatchError, match=r"3 labels up, down, left[\s\S]*Run the recipe first"):
        measure_sensitivity(recipe(f"model={home}/other", "student.start=model", "teacher=null"))


def test_a_model_that_was_fine_tuned_elsewhere_is_measured_by_the_names_of_its_classes(home: Path):
    """By index a good model scores below chance, and whatever harms it looks like a gain."""
    model = classifier(seed=3, labels=("green", "red", "blue"))
    model.save_pretrained(home / "tuned")
    tiny_tokenizer().save_pretrained(home / "tuned")
    found = measure_sensitivity(recipe(f"model={home}/tuned", "student.start=model", "teacher=null"), fractions=[0.5])
    rows, names = validation()
    assert found.dense == pytest.approx(by_hand(model, rows, names), abs=1e-5) != by_hand(model, rows, ("green", "red", "blue"))


def test_the_teacher_of_another_recipe_and_a_damaged_manifest_are_refused(home: Path):
    finish(recipe(), teacher=classifier())
    with pytest.raises(RecipeError, match=r"'out': its teacher was trained by another recipe \(seed differs\)"):
        measure_sensitivity(recipe("seed=1"))
    assert measure_sensitivity(
        recipe("measurement.runs=5", "pruning=[{structure: ffn, sparsity: 0.5}]"), fractions=[0.5]
    ).points
    (home / "out/hf_shrink_manifest.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"out/hf_shrink_manifest\.json"):
        measure_sensitivity(recipe())


def splits(same: bool = False) -> TokenizedSplits:
    train, rest, test = (colour_tokens(rows, seed=seed) for seed, rows in enumerate((40, 30, 20)))
    return TokenizedSplits(train, test if same else rest, test)


def test_rows_are_drawn_by_seed_and_never_from_the_test_split():
    """A budget spent by test rows makes the test a rehearsal of itself; sorted data would be one class alone."""
    tokens = splits()
    first, where = calibration_rows(tokens, 8, seed=1)
    assert len(first) == 8 and where == "validation split of 30 rows, seed 1"
    assert first[:] == calibration_rows(tokens, 8, seed=1)[0][:] != calibration_rows(tokens, 8, seed=2)[0][:]
    assert first[:] != tokens.validation.select(range(8))[:]
    assert all(row in list(tokens.validation) for row in first)
    assert len(calibration_rows(tokens, 99, seed=1)[0]) == 30
    drawn, where = calibration_rows(splits(same=True), 8, seed=1)
    assert where == "training split of 40 rows, seed 1" and all(row in list(tokens.train) for row in drawn)
    with pytest.raises(RecipeError, match="0 rows"):
        calibration_rows(tokens, 0, seed=1)


def test_the_score_is_minus_the_cross_entropy_in_nats():
    data, model = colour_tokens(9), tiny_classifier()
    found = score_on(data, tiny_tokenizer(), COLOURS)(model)
    assert found["log-likelihood"] == pytest.approx(by_hand(model, data), abs=1e-6)
    with torch.no_grad():
        right = [int(model(torch.tensor([row["input_ids"]])).logits.argmax()) == row["labels"] for row in data]
    assert found["accuracy_percent"] == pytest.approx(100 * sum(right) / 9) and next(iter(found)) == "log-likelihood"


@pytest.fixture(scope="module")
def learned() -> PreTrainedModel:
    """A classifier that has learnt its colours in a few steps; not to be changed."""
    model, data = tiny_classifier().train(), colour_tokens(96, seed=9)
    pad, optimizer = DataCollatorWithPadding(tiny_tokenizer()), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        for start in range(0, 96, 32):
            model(**pad([data[i] for i in range(start, start + 32)])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    assert score_on(colour_tokens(30, seed=1), tiny_tokenizer(), COLOURS)(model)["log-likelihood"] > -0.8, "guessing has -1.1"
    return model


ENTRIES = (
    "{structure: ffn, sparsity: 0.5, allocation: sensitivity}",
    "{structure: heads, sparsity: 0.25, allocation: sensitivity, budget: macs, criterion: taylor}",
)


def test_each_entry_spends_its_own_budget_and_the_model_stays(home: Path, learned: PreTrainedModel):
    """Pruning with the answer removes what was asked for, and nothing was removed while asking."""
    ran, model = recipe(f"pruning=[{', '.join(ENTRIES)}]"), learned
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fractions_for(ran, model, splits(), tiny_tokenizer())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sorted(found) == sorted(
        f"bert.encoder.layer.{i}{part}" for i in (0, 1) for part in (":ffn", ".attention.self:heads")
    )
    for part, share, most in ((":ffn", 0.5, 0.75), (":heads", 0.25, 0.625)):
        own = [value for name, value in found.items() if name.endswith(part)]
        assert share <= sum(own) / 2 < share + 1 / 8 and max(own) <= most
    ffn = ran.pruning[0]
    small = prune(model, ffn, fractions={name: value for name, value in found.items() if name.endswith(":ffn")})
    widths = [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer]
    assert widths == [round(64 * (1 - found[f"bert.encoder.layer.{i}:ffn"])) for i in (0, 1)]


def test_only_entries_that_ask_for_it_are_measured(home: Path, learned: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    """Minutes of measuring for an entry that never reads the result."""
    seen = []

    def watched(model, configs, score, **options):
        seen.append((options["entries"], options["fractions"]))
        return sensitivity(model, configs, score, **options)

    monkeypatch.setattr(module, "sensitivity", watched)
    model, rest = learned, (splits(), tiny_tokenizer())
    assert (
        fractions_for(recipe("pruning=[{structure: heads, sparsity: 0.5}]"), model, *rest)
        == {}
        == fractions_for(recipe(), model, *rest)
    )
    idle = recipe("pruning=[{structure: ffn, sparsity: 0, allocation: sensitivity}]")
    assert set(fractions_for(idle, model, *rest).values()) == {0.0} and seen == []
    mixed = recipe(f"pruning=[{{structure: heads, sparsity: 0.5}}, {ENTRIES[0]}]")
    assert all(name.endswith(":ffn") for name in fractions_for(mixed, model, *rest))
    assert seen == [(("pruning.1",), {"pruning.1": (0.25, 0.5, 0.75)})]


def test_latency_is_spent_where_it_is_measured(home: Path, learned: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    """By hand: the first layer's neurons cost nothing to run, so only the second one's can pay."""

    def timer(model, config):
        def latency(candidate):
            return float(candidate.bert.encoder.layer[1].intermediate.dense.out_features)

        return latency, "by hand"

    monkeypatch.setattr(module, "timer_of", timer)
    ran = recipe("pruning=[{structure: ffn, sparsity: 0.5, allocation: sensitivity, budget: latency}]")
    found = fractions_for(ran, learned, splits(), tiny_tokenizer())
    assert found == {"bert.encoder.layer.0:ffn": 0.0, "bert.encoder.layer.1:ffn": 0.5}


def test_what_cannot_be_spent_is_refused(home: Path):
    model, rest = tiny_classifier(), (splits(), tiny_tokenizer())
    for entry, message in (
        ("{threshold: 0.1, allocation: sensitivity}", "allocation sensitivity would be ignored with threshold"),
        (
            "{sparsity: 0.5, allocation: sensitivity, budget: latency}",
            "zeros of structure: unstructured save no time",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            fractions_for(recipe(f"pruning=[{entry}]"), model, *rest)


def test_a_model_that_only_guesses_is_said_aloud_and_spends_nothing(home: Path, learned: PreTrainedModel):
    """The start of a run with a new head or few layers does; its losses are noise, and a budget spent by them too."""
    entry = recipe(f"pruning=[{ENTRIES[0]}]")
    with pytest.raises(MismatchError, match=r"pruning\.0\.allocation: sensitivity: the model knows hardly more than chance"):
        fractions_for(entry, tiny_classifier(), splits(), tiny_tokenizer())
    for model, guesses in ((tiny_classifier(), True), (learned, False)):
        finish(recipe(), teacher=model)
        assert any("more than chance" in note for note in measure_sensitivity(entry, fractions=[0.5]).notes) is guesses


def test_a_smaller_model_is_timed_in_turns_with_the_whole_one(monkeypatch: pytest.MonkeyPatch):
    """By hand: 10 ms alone; later all is twice as slow, and the small one takes half of that: 5 ms, not 10."""
    answers = iter([{0: [0.009, 0.010, 0.5]}, {0: [0.020, 0.020, 0.9], 1: [0.010, 0.010, 0.45]}])
    monkeypatch.setattr(module, "take_turns", lambda calls, **options: [call() for call in calls.values()] and next(answers))
    model = tiny_classifier()
    latency, setting = timer_of(model, MeasurementConfig(batch_sizes=(3, 1), length=7, runs=4, threads=1))
    assert setting == "cpu, 1 thread, batch 3, 7 tokens, 4 warm rounds after 3"
    assert latency(model) == pytest.approx(10) and latency(tiny_classifier(seed=1)) == pytest.approx(5)


def test_an_encoder_of_another_depth_than_its_decoder_is_measured_without_its_layers():
    """No layer of both could leave, and that ended the whole measurement."""
    model = tiny_classifier("t5", layers=3, num_decoder_layers=2)
    points = sensitivity(model, module._everything(model), lambda found: 0.0, fractions=[0.5]).points
    assert {point.structure for point in points} == {"ffn", "heads", "hidden"}
