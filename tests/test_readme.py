"""The README is run: what it tells people to type works, and what it says of recipes is what recipes know."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_shrink import Recipe
from tests.publishing.conftest import client_env
from tests.publishing.fake_hub import FakeHub
from tests.warm import hf_shrink, python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.S | re.M)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


def test_there_is_something_to_run():
    """A changed fence would leave the tests below with nothing to do."""
    assert len(PYTHON) >= 2 and sum(line.startswith("hf-shrink") for line in COMMANDS) >= 8


@pytest.fixture(scope="module")
def own(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny project, where commands may write."""
    copy = tmp_path_factory.mktemp("readme") / "project"
    shutil.copytree(project, copy)
    return copy


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the Hub is one of the tests' own."""
    with FakeHub(tmp_path_factory.mktemp("cas")) as hub:
        yield client_env(hub, tmp_path_factory.mktemp("home"), xet=False)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[-1][:30])
def test_a_python_block_runs(own: Path, block: str):
    assert "hf_shrink" in block, "nobody's process has it imported already, as this one has"
    done = python(block, cwd=own)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("hf-shrink")])
def test_a_command_runs(own: Path, online: dict[str, str], line: str):
    """The recipe's name is the shipped one; its contents are cut down to the tiny project."""
    script, *words = shlex.split(line)
    if "my-name/" in line:  # the Hub's address is read while its client is imported
        call = [str(Path(sys.executable).parent / script), *words]
        done = subprocess.run(call, cwd=own, env=online, capture_output=True, text=True, check=False)
    else:
        done = hf_shrink(*words, cwd=own)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_a_make_target_exists_and_starts_with_the_environment(line: str):
    """A newcomer has nothing but Python: each of the two commands has to build what it needs."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", line.split()[1]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "-m venv .venv" in done.stdout and "constraints.txt" in done.stdout


def test_the_recipe_reference_is_what_recipes_know():
    """A key that was renamed would still be read about here."""
    found = re.search(r"<!-- recipe reference: .*? -->\n(.*)\n<!-- end of recipe reference -->", README, flags=re.S)
    assert found and found[1].strip() == Recipe.reference_markdown().strip()


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)
