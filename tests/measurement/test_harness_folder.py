"""Tasks for lm-eval as a folder of files. What these prevent: a folder that looks like data and runs somebody's Python."""

import builtins
from pathlib import Path

import pytest

from hf_shrink import Recipe
from hf_shrink.errors import RecipeError, ResourceError, SecurityError
from hf_shrink.measurement.config import LmEvalConfig
from hf_shrink.measurement.harness_folder import check_folder, digest
from hf_shrink.measurement.harness_tasks import check_tasks

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
    assert digest(tmp_path) != first


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
