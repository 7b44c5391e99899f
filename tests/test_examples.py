"""The examples are run: each script, and every command and block of their page, in its order and at a tiny size."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from hf_shrink.cli import app
from tests.project import make_project
from tests.publishing.conftest import client_env
from tests.publishing.fake_hub import FakeHub

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.S | re.M)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
TINY = {
    "bert_classification.py": "--model base --rows 42 --steps 3",
    "gpt_text.py": "--speeches 1 --steps 3",
    "own_criterion_and_loss.py": "--rows 42 --steps 3",
}


def test_each_script_is_short_and_run_by_the_page():
    """A moved folder, or a script that the page forgot, would leave the walk below with nothing to do."""
    assert {path.name for path in SCRIPTS} == set(TINY)
    for path in SCRIPTS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path.name
        assert any(line.startswith(f"python examples/{path.name}") for line in COMMANDS), path.name
    assert sum(line.startswith("hf-shrink") for line in COMMANDS) >= 2


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which the page was walked through, and what each command printed."""
    folder = make_project(tmp_path_factory.mktemp("examples"), layers=4)
    said: dict[str, str] = {}
    with contextlib.chdir(folder):
        for kind, block in BLOCKS:
            if kind == "bash":
                said |= {line: _run(line, folder) for line in block.splitlines()}
            elif not any(block in path.read_text(encoding="utf-8") for path in SCRIPTS):  # else it ran in its script
                exec(compile(block, "examples/README.md", "exec"), {})
    return folder, said


def _run(line: str, folder: Path) -> str:
    words, out = shlex.split(line), io.StringIO()
    if words[0] == "python":
        script = ROOT / words[1]
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(sys, "argv", [words[1], *words[2:], *TINY[script.name].split()])
            runpy.run_path(str(script), run_name="__main__")
        return out.getvalue()
    if words[:2] == ["hf-shrink", "push"]:
        with FakeHub(folder / "cas") as hub:
            env = client_env(hub, folder / "home", xet=False)
            call = [str(Path(sys.executable).parent / words[0]), *words[1:]]
            done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    if words[0] == "hf-shrink":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output[-2000:]
        return result.stdout
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.fullmatch(r"pip install 'hf-shrink\[([\w,]+)\]'", line)
    assert found and set(found[1].split(",")) <= set(extras), line
    return line


def test_every_command_of_the_page_says_something(walked):
    assert all(text.strip() for text in walked[1].values())


def test_every_file_that_the_page_names_is_there(walked):
    """People would look for a picture that no command writes."""
    named = set(re.findall(r"`(runs/[\w./-]+)`", PAGE))
    assert len(named) >= 4
    assert [path for path in sorted(named) if not (walked[0] / path).exists()] == []


@pytest.mark.parametrize(("script", "quality"), [("bert_classification.py", "accuracy"), ("gpt_text.py", "perplexity")])
def test_a_script_prints_one_table_of_three_models_and_the_small_one_is_smaller(script, quality, walked):
    folder, said = walked
    text = next(text for line, text in said.items() if script in line)
    header = next(line for line in text.splitlines() if line.startswith("|  |"))
    assert [cell.strip() for cell in header.strip("|").split("|")[1:]] == ["teacher (baseline)", "small", "small-int8"]
    row = next(line for line in text.splitlines() if line.startswith(f"| {quality}"))
    assert all(cell.strip() for cell in row.strip("|").split("|"))
    run = folder / "runs" / script.split("_")[0]
    weights = [run / name / "model.safetensors" for name in ("teacher", "small", "small-int8")]
    teacher, small, stored = (path.stat().st_size for path in weights)
    assert teacher > small > stored


def test_your_own_functions_change_what_is_learnt(walked):
    """A criterion or loss that nobody calls gives the built-in student again."""
    own, built_in = (load_file(walked[0] / "runs" / "own" / name / "model.safetensors") for name in ("own", "built-in"))
    assert own.keys() == built_in.keys()
    assert any(not own[name].equal(built_in[name]) for name in own)


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if not link.startswith("http")]
    assert links and all((ROOT / "examples" / link).exists() for link in links)
