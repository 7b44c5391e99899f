"""Scores of lm-eval, against the package itself. What these prevent: numbers that are not lm-eval's, models that were shown
other examples than their baseline, and tasks that run code or leave their mark on the caller."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hf_shrink import PruningConfig, QuantizationConfig, Recipe, compare, measure, prune, quantize, run
from hf_shrink.errors import RecipeError, ResourceError, SecurityError
from hf_shrink.measurement.config import LmEvalConfig, MeasurementConfig
from hf_shrink.measurement.harness import harness
from hf_shrink.measurement.harness_tasks import check_tasks
from hf_shrink.measurement.remarks import remarks
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.values import Report
from hf_shrink.plan import make_plan
from tests.project import make_lm_project
from tests.tiny import COLOURS, colour_texts, tiny_causal_lm, tiny_classifier, tiny_lm_tokenizer

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

ROWS = 24
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}
test_split: test
training_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [red, green, blue]
doc_to_target: label
num_fewshot: {shots}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
WORDS = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks over a file of colours: none, two examples shown first, and plain text."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in colour_texts(ROWS)))
    (tmp_path / "tasks").mkdir()
    for name, shots in (("bare", 0), ("shown", 2)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, shots=shots, rows=rows))
    (tmp_path / "tasks" / "words.yaml").write_text(WORDS.format(rows=rows))
    return tmp_path / "tasks"


def asked(folder: Path, *tasks: str, limit: int | None = None) -> MeasurementConfig:
    section = LmEvalConfig(tasks=tasks, folder=str(folder), limit=limit)
    return MeasurementConfig(lm_eval=section, memory=False, runs=3, batch_sizes=(4,), length=8, bootstrap=100)


def found(folder: Path, models: list[Any], *tasks: str, limit: int | None = None) -> list[dict[tuple[str, str], Any]]:
    """Measurements of each model by name and task."""
    subjects = tuple(Subject(f"m{i}", model=model) for i, model in enumerate(models))
    lists = harness(Bench(subjects, asked(folder, *tasks, limit=limit), tokenizer=tiny_lm_tokenizer()))
    return [{(m.name, m.parts[0].removeprefix("task ").split(":")[0]): m for m in each} for each in lists]


def test_the_accuracy_is_that_of_a_plain_loop(folder: Path):
    """The second implementation: the likeliest of three words after the text, by transformers alone."""
    model, tokenizer = tiny_causal_lm(initializer_range=0.3), tiny_lm_tokenizer()
    rows = colour_texts(ROWS)
    hits = []
    for text, label in zip(rows["text"], rows["label"], strict=True):
        with torch.no_grad():
            logits = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        hits.append(int(logits[[tokenizer.convert_tokens_to_ids(word) for word in COLOURS]].argmax()) == label)
    score = found(folder, [model], "bare")[0]["lm_eval", "bare"]
    assert 0 < np.mean(hits) < 1 and score.value == pytest.approx(np.mean(hits))
    assert score.stderr == pytest.approx(np.std(hits, ddof=1) / np.sqrt(ROWS))
    assert score.interval == pytest.approx((score.value - 1.96 * score.stderr, score.value + 1.96 * score.stderr))


def test_value_and_error_are_what_the_package_prints_and_the_setting_says_how(folder: Path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = tiny_causal_lm(initializer_range=0.3)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tiny_lm_tokenizer(), batch_size=4),
        tasks=["bare", "shown", "words"],
        limit=12,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )["results"]
    ours = found(folder, [model], "bare", "shown", "words", limit=12)[0]
    for task in ("bare", "shown"):
        score = ours["lm_eval", task]
        assert (score.value, score.stderr) == pytest.approx((theirs[task]["acc,none"], theirs[task]["acc_stderr,none"]))
    assert ours["lm_eval_loss", "words"].value == pytest.approx(theirs["words"]["word_perplexity,none"])
    setting = ours["lm_eval", "shown"].setting
    assert setting.startswith(
        f"task shown: acc, version 2.0, 2-shot, 12 of {ROWS} examples, lm-eval {lm_eval.__version__}, defin"
    )


def test_models_are_shown_the_same_and_the_change_is_that_of_the_examples(folder: Path):
    """A task goes on drawing its shown examples where it stopped: the same model would get another score the second time."""
    first, other = tiny_causal_lm(initializer_range=0.3), tiny_causal_lm("llama", seed=3, initializer_range=0.3)
    base, apart, again = found(folder, [first, other, first], "shown", "words")
    assert again["lm_eval", "shown"].value == base["lm_eval", "shown"].value
    assert again["lm_eval_change", "shown"].interval == (0, 0) and ("lm_eval_change", "shown") not in base
    change = apart["lm_eval_change", "shown"]
    assert change.value == pytest.approx(apart["lm_eval", "shown"].value - base["lm_eval", "shown"].value)
    assert change.interval[0] <= change.value <= change.interval[1] and change.stderr > 0
    assert ("lm_eval_loss_change", "words") not in apart, "no plain mean of the examples"


def test_nothing_of_the_caller_changes(folder: Path, capfd: pytest.CaptureFixture[str]):
    """Drawn numbers, a padding token, training mode, weights, metrics and templates, and stdout, which is for the result."""
    import evaluate
    from lm_eval import utils

    model, tokenizer = tiny_causal_lm().train(), tiny_lm_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    doors = evaluate.load, utils.env
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    measured = harness(Bench((Subject("a", model=model),), asked(folder, "shown", "words"), tokenizer=tokenizer))
    assert len(measured[0]) == 2
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert tokenizer.pad_token is None and model.training and (evaluate.load, utils.env) == doors
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert capfd.readouterr().out == ""


def test_pruned_and_quantised_models_are_asked_too(folder: Path):
    """Their shapes and kernels are their own; a crash here would come at the end of a run."""
    model = tiny_causal_lm(hidden=64, ffn=128, initializer_range=0.3)
    small = prune(model, PruningConfig(structure="heads", sparsity=0.5))
    base, cut, packed = found(folder, [model, small, quantize(small, QuantizationConfig(bits=8))], "bare")
    assert {"lm_eval", "lm_eval_change"} <= {name for name, _ in cut} & {name for name, _ in packed}
    assert abs(packed["lm_eval", "bare"].value - cut["lm_eval", "bare"].value) <= 0.25 and base


def test_other_models_and_other_doors_are_refused(folder: Path, tmp_path: Path):
    """Each would run somebody's code, or end a night's run with a crash."""
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(RecipeError, match="BertForSequenceClassification"):
        measure(tiny_classifier(), tokenizer=tiny_lm_tokenizer(), config=asked(folder, "bare"))
    evil = TASK.format(name="evil", shots=0, rows=rows)
    reach = evil.replace("{{text}}", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (folder / "evil.yaml").write_text(reach)
    with pytest.raises(SecurityError, match="template reaches"):
        harness(Bench((Subject("a", model=tiny_causal_lm()),), asked(folder, "evil"), tokenizer=tiny_lm_tokenizer()))
    (folder / "evil.yaml").write_text(evil.replace("metric: acc,", "metric: ./evil,"))
    with pytest.raises(SecurityError, match=r"judged by './evil'"):
        check_tasks(asked(folder, "evil").lm_eval, download=False)
    (folder / "evil.yaml").write_text(evil + "unsafe_code: true\n")
    with pytest.raises(SecurityError, match="runs as code"):
        check_tasks(asked(folder, "evil").lm_eval, download=False)
    (folder / "evil.yaml").write_text(evil.replace(str(rows), str(tmp_path / "gone.jsonl")))
    with pytest.raises(ResourceError, match="data of the tasks"):
        check_tasks(asked(folder, "evil").lm_eval, download=True)
    with pytest.raises(RecipeError, match="is no folder"):
        check_tasks(asked(folder / "gone", "evil").lm_eval, download=False)


def test_the_package_s_own_tasks_are_known_by_name_and_not_downloaded_by_a_plan(folder: Path):
    """Found missing after the training, a typo costs the night; so does a task without its data."""
    with pytest.raises(RecipeError, match=r"no task 'arc_eazy'\. Did you mean 'arc_easy'\?"):
        check_tasks(asked(folder, "bare", "arc_eazy").lm_eval, download=False)
    for name in ("arc_easy", "ai2_arc", "mmlu"):  # a task, a tag, a group
        check_tasks(asked(folder, name).lm_eval, download=False)
    with pytest.raises(ResourceError, match="while online"):
        check_tasks(asked(folder, "arc_easy").lm_eval, download=True)
    with pytest.raises(SecurityError, match="humaneval"):
        check_tasks(asked(folder, "humaneval").lm_eval, download=False)


def test_a_loss_is_said_in_words_where_it_is_more_than_chance():
    def report(name: str, value: float, change: tuple[float, float] | None) -> Report:
        setting = "task arc: acc, version 1, 0-shot, 100 examples"
        score = {"name": "lm_eval", "value": value, "unit": "", "setting": setting, "stderr": 0.04}
        changed = {"name": "lm_eval_change", "value": value - 0.5, "unit": "", "setting": setting, "interval": change}
        return Report.from_stage({"name": name, "measurements": [score, *([changed] if change else [])]})

    base = report("teacher", 0.5, None)
    assert remarks([base, report("small", 0.4, (-0.12, -0.08))]) == [
        "small: arc: acc of lm-eval is worse than that of teacher: 0.4 against 0.5 "
        "(95% interval of the change -0.120 to -0.080)."
    ]
    assert remarks([base, report("small", 0.4, (-0.22, 0.02))]) == [] == remarks([base, report("small", 0.6, (0.05, 0.15))])
    steps = [base, report("shrunk", 0.5, (0.0, 0.0)), report("quantized", 0.3, (-0.25, -0.15))]
    assert len(remarks(steps)) == 2, "against the teacher, and against the step before by both errors"


def test_a_run_reports_them_of_every_stage_and_compare_and_card_show_them(folder: Path, tmp_path: Path, monkeypatch):
    project = make_lm_project(tmp_path / "project", "gpt2")
    monkeypatch.chdir(project)
    training = "{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true}"
    recipe = Recipe.from_text(f"""
version: 1
task: causal-lm
model: base
output_dir: run
data: {{dataset: data, max_length: 16}}
student: {{start: teacher, layers: 2}}
teacher: {{model: base, training: {training}}}
training: {training}
quantization: {{bits: 8}}
measurement:
  {{batch_sizes: [2], length: 16, runs: 3, bootstrap: 100, memory: false,
    lm_eval: {{tasks: [shown], folder: {folder}, limit: 10}}}}
""")
    assert any("asks lm-eval for shown, on at most 10 examples" in line for line in make_plan(recipe).stages[-1].lines())
    report = run(recipe).report
    for stage in (Report.from_stage(each) for each in report["stages"]):
        score = stage.find("lm_eval")
        assert score is not None and "10 of 24 examples" in score.setting and score.stderr is not None, stage.name
        assert (stage.find("lm_eval_change") is None) == (stage.name == "teacher")
    card = (project / "run" / "README.md").read_text()
    assert "lm-eval, task shown: acc" in card and "2-shot" in card and str(tmp_path) not in card
    assert ModelCard(card).data.eval_results, "the metadata is about the test data of the recipe"
    assert all("lm" not in metric for metric in ModelCard(card).data.metrics)
    assert "lm_eval_change" in compare([project / "run"]).csv()


def test_requests_that_lost_their_beginning_are_counted_and_said(folder: Path):
    """lm-eval says so in a log that nobody sees: a score by half of a text would pass for one by the whole.

    By hand: three answers of one token are weighed after each text; all but the last token are read.
    """
    model, tokenizer, most = tiny_causal_lm("llama"), tiny_lm_tokenizer(), 8
    model.config.max_position_embeddings = most
    lengths = [len(tokenizer(text)["input_ids"]) for text in colour_texts(ROWS)["text"]]
    longer = 3 * sum(length > most for length in lengths)
    cut = found(folder, [model], "bare")[0]["lm_eval_cut", "of 72"]
    assert 0 < longer < 3 * ROWS and (cut.value, cut.unit) == (longer, "requests")
    assert cut.setting == f"of {3 * ROWS}, the model takes {most} tokens"
    assert remarks([Report(name="small", measurements=(cut,))])[-1] == (
        f"small: {longer} requests to lm-eval (of 72, the model takes 8 tokens) were too long and lost their beginning."
    )
    assert ("lm_eval_cut", "of 72") not in found(folder, [tiny_causal_lm("llama")], "bare")[0]
