"""The command line: help at once, results alone on stdout, one short error with the right exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent / "hf-shrink"
COMMANDS = ("run", "plan", "measure", "compare", "inspect", "init", "schema", "env")


def hf_shrink(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed console script in a process of its own."""
    return subprocess.run([str(BIN), *words], capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_help_names_every_command_and_leaves_torch_unimported():
    """Ten seconds of imports before a help text: people stop asking for help."""
    code = (
        "import sys; sys.argv = ['hf-shrink', '--help']\n"
        "from hf_shrink.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str):
    done = hf_shrink(command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


def test_usage_errors_exit_with_2():
    assert hf_shrink("run").returncode == 2
    assert hf_shrink("shrnk").returncode == 2
    assert hf_shrink("run", "recipe.yaml", "--no-such-option").returncode == 2


def test_a_missing_recipe_is_one_short_line(tmp_path: Path):
    """A traceback of forty lines hides the one word that was mistyped."""
    done = hf_shrink("run", "recipes/nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "nothing.yaml" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3 and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_schema_is_json_alone_on_stdout():
    schema = json.loads(hf_shrink("schema").stdout)
    assert {"task", "model", "data", "pruning"} <= schema["properties"].keys()


def test_env_names_versions_and_no_person_or_path():
    """People paste this into public issues."""
    done = hf_shrink("env", "--json")
    facts = json.loads(done.stdout)
    assert facts["torch"] and facts["transformers"]
    assert str(Path.home()) not in done.stdout.replace('"/"', "")


def test_init_writes_a_recipe_that_parses_and_never_over_a_file(tmp_path: Path):
    """A second `init` must not wipe out an afternoon's recipe."""
    from hf_shrink.recipe import Recipe

    assert hf_shrink("init", "mine.yaml", cwd=tmp_path).returncode == 0
    Recipe.from_yaml(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("# mine\n")
    again = hf_shrink("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "mine.yaml" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == "# mine\n"


def test_set_without_a_recipe_to_change_is_refused():
    """It would be ignored."""
    assert hf_shrink("measure", "some-model", "--set", "seed=1").returncode == 2


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "hf_shrink", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "hf-shrink" in done.stdout
