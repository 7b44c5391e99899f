"""Tasks for lm-eval as a folder of files. What these prevent: a folder that looks like data and runs somebody's Python."""

import builtins
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_shrink import Recipe
from hf_shrink.errors import RecipeError, ResourceError, SecurityError
from hf_shrink.measured import MEASURED, _asked, forget_other_tasks
from hf_shrink.measurement.config import LmEvalConfig
from hf_shrink.measurement.harness_folder import check_folder, digest
from hf_shrink.measurement.harness_lengths import watch_lengths
from hf_shrink.measurement.harness_tasks import check_tasks
from hf_shrink.workspace import Workspace

TASK = "task: mine\ndataset_path: json\ndoc_to_text: '{{text}}'\n"


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({"a.yaml": TASK}, None, ""),
        ({"a.yaml": "include: base\n" + TASK, "base": "output_type: multiple_choice\n"}, None, ""),
        ({"a.yaml": TASK + "process_docs: !function evil.run\n", "evil.py": "raise SystemExit"}, SecurityError, "!function"),
        ({"a.yaml": TASK + "deep: {list: [1, {here: !function os.system}]}\n"}, SecurityError, "!function"),
        ({"a.yaml": "include: base\n" + TASK, "base": "process_docs: !function os.system\n"}, SecurityError, "base: !function"),
        ({"a.yaml": "include: [one, ../../outside]\n" + TASK, "one": "x: 1\n"}, SecurityError, "outside of the folder"),
        ({"a.yaml": "include: /etc/hostname\n" + TASK}, SecurityError, "outside of the folder"),
        ({"deep/er/a.yaml": TASK + "class: os.system\n"}, SecurityError, "`class`"),
        ({"a.yaml": TASK + "x: !!python/object/apply:os.system [id]\n"}, SecurityError, "python/object"),
        ({"a.yaml": "include: a.yaml\n" + TASK}, RecipeError, "includes itself"),
        ({"a.yaml": "include: gone\n" + TASK}, RecipeError, "gone is not there"),
        ({"a.yaml": "task: [\n"}, RecipeError, "not valid YAML"),
    ],
)
def test_what_names_code_is_refused_and_nothing_of_it_is_run(
    tmp_path: Path, files: dict[str, str], error: type[Exception] | None, says: str
):
    for name, text in files.items():
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks" / name).write_text(text)
    if error is None:
        check_folder(tmp_path / "tasks")
        return
    with pytest.raises(error) as caught:
        check_folder(tmp_path / "tasks")
    assert says in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "secret.yaml").write_text(TASK)
    (tmp_path / "tasks" / "a.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(SecurityError, match="links to a file outside"):
        check_folder(tmp_path / "tasks")


def test_the_digest_tells_one_definition_from_another(tmp_path: Path):
    """Scores by a changed prompt must not stand in one row with those by the old one."""
    (tmp_path / "a.yaml").write_text(TASK)
    first = digest(tmp_path)
    assert first == digest(tmp_path) and len(first) == 12
    (tmp_path / "a.yaml").write_text(TASK.replace("{{text}}", "{{text}} "))
    found = [first, digest(tmp_path)]
    for other in ("_included_without_suffix", "rows.jsonl"):
        (tmp_path / other).write_text("one")
        found.append(digest(tmp_path))
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("task", "section", "says"),
    [
        ("text-classification", "{tasks: [arc_easy]}", "measurement.lm_eval: asks causal language models"),
        ("causal-lm", "{tasks: []}", "measurement.lm_eval.tasks"),
        ("causal-lm", "{tasks: [a, b, a]}", "task 'a' stands here twice"),
        ("causal-lm", "{tasks: [a], limit: 1}", "measurement.lm_eval.limit"),
        ("causal-lm", "{tasks: [a], trust_remote_code: true}", "unknown key"),
    ],
)
def test_a_recipe_says_what_cannot_be_asked(task: str, section: str, says: str):
    text = f"version: 1\ntask: {task}\nmodel: m\noutput_dir: o\ndata: {{dataset: d}}\nmeasurement: {{lm_eval: {section}}}\n"
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(text)
    assert says in str(caught.value)


def test_a_missing_package_is_named_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[lm-eval\]'"):
        check_tasks(LmEvalConfig(tasks=("arc_easy",)), download=False)


class Asked:
    """Stands for lm-eval's model: eight tokens fit, a word is a token."""

    max_length = 8

    def __init__(self) -> None:
        self.weighed, self.written = [], []

    def tok_encode(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def tok_batch_encode(self, strings: list[str], left_truncate_len: int | None = None, truncation: bool = False) -> None:
        self.written += [(text, left_truncate_len, truncation) for text in strings]

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False) -> str:
        self.weighed += requests
        return "scores"


def test_what_does_not_fit_is_counted_at_both_doors_and_goes_through_as_it_came():
    """By hand: of an answer the last token is not read, so nine fit; of a text to be continued as many as lm-eval leaves."""
    asked = Asked()
    fitting = watch_lengths(asked)
    requests = [(("", ""), [0] * 8, [0]), (("", ""), [0] * 8, [0, 0]), (("", ""), [0], [0])]
    assert asked._loglikelihood_tokens(requests, disable_tqdm=True) == "scores" and asked.weighed == requests
    asked.tok_batch_encode(["a b c", "a b c d"], left_truncate_len=3, truncation=True)
    asked.tok_batch_encode(["a " * 20])
    assert (fitting.most, fitting.asked, fitting.cut) == (8, 5, 2)
    assert asked.written == [("a b c", 3, True), ("a b c d", 3, True), ("a " * 20, None, False)]


def leaving(text: str, known: dict[str, str]) -> Callable[[Path], dict[str, str]]:
    """A stage that leaves a file, and what is to be known of it."""
    return lambda fresh: known if (fresh / "file").write_text(text) else {}


def test_what_was_measured_by_other_tasks_is_forgotten_and_nothing_else(tmp_path: Path):
    """A finished run would go on showing the scores of the prompt that was there before."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text(TASK)
    section = f"measurement: {{lm_eval: {{tasks: [mine], folder: {tmp_path / 'tasks'}}}}}\n"
    text = "version: 1\ntask: causal-lm\nmodel: m\noutput_dir: o\ndata: {dataset: d}\n"
    with_tasks, without = Recipe.from_text(text + section), Recipe.from_text(text)
    work = Workspace(tmp_path / "run")
    work.begin({}, {})
    for stage, known in (("student", {}), (MEASURED, _asked(with_tasks)), ("report", {})):
        work.write_stage(stage, leaving(stage, known))
    forget_other_tasks(with_tasks, work)
    assert work.result("report") is not None
    (tmp_path / "tasks" / "a.yaml").write_text(TASK.replace("{{text}}", "{{text}} "))
    forget_other_tasks(with_tasks, work)
    assert work.result(MEASURED) is None and work.result("report") is None and work.result("student") is not None
    work.write_stage(MEASURED, leaving("anew", _asked(without)))
    forget_other_tasks(without, work)
    assert work.result(MEASURED) == {}
    work.close()
