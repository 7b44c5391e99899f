"""The command line: help at once, results alone on stdout, one short error with the right exit code."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hf_shrink import errors
from hf_shrink.cli import app, reported
from hf_shrink.files import files_below, sha256
from tests import warm

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
    assert ("--plots" in done.stdout) == ("hf-shrink[plots]" in done.stdout), "square brackets are markup to the terminal"


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


# ---- exit codes ----


@pytest.fixture(scope="module")
def copied(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project that no test here may change."""
    copy = tmp_path_factory.mktemp("cli") / "project"
    shutil.copytree(project, copy)
    return copy


@pytest.fixture
def own(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That copy as the current folder; every file has to be there unchanged in the end."""

    def digests() -> dict[str, str]:
        return {path.relative_to(copied).as_posix(): sha256(path) for path in files_below(copied)}

    before = digests()
    monkeypatch.chdir(copied)
    yield copied
    assert digests() == before


def failing(code: int, *words: str) -> str:
    """What a command that has to fail says on stderr; it says nothing on stdout."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, (done.exit_code, done.stderr, done.exception)
    assert done.stdout == "" and done.stderr.startswith("error: ") and str(Path.home()) not in done.stderr
    return str(done.stderr)


RUN = ("run", "recipes/quickstart.yaml")
NEW = (*RUN, "--set", "output_dir=runs/new", "--set", "measurement.memory=false")


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (2, ("run", "recipes/quickstart.yaml", "--set", "pruning.0.sparcity=0.5"), "sparsity"),
        (2, (*NEW, "--set", "pruning.0.end_step=5000"), "5000"),
        (3, (*NEW, "--set", "data.text_column=txt"), "text"),
        (4, (*NEW, "--set", "model=missing/folder/here", "--set", "student.start=model"), "missing/folder/here"),
        (4, ("inspect", "missing/folder/here"), "missing/folder/here"),
        (4, ("measure", "missing/folder/here"), "missing/folder/here"),
        (4, ("plan", "recipes/quickstart.yaml", "--set", "data.dataset=some-org/some-data"), "some-org/some-data"),
        (4, (*RUN, "--set", "output_dir=recipes/quickstart.yaml"), "is a file"),
        (2, (*RUN, "--accept-changes", "seed"), "has not changed"),
        (2, (*RUN, "--overwrite", "--accept-changes", "seed"), "choose one"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_exit_code_says_what_kind_of_error_it_was(own: Path, code: int, words: tuple[str, ...], says: str):
    """A scheduler decides by the code alone whether to try again."""
    said = failing(code, *words)
    assert says in said and len(said.strip().splitlines()) <= 3
    assert not (own / "runs/new").exists()


def test_a_folder_with_foreign_files_is_refused_and_three_of_them_are_named(own: Path):
    said = failing(2, *RUN, "--set", "output_dir=data")
    assert "test.csv, train.csv, validation.csv" in said and "--overwrite" in said


def test_a_changed_recipe_exits_with_2_and_shows_the_difference(own: Path):
    said = failing(2, *RUN, "--set", "quantization.0.bits=4")
    assert "-  bits: 8" in said and "+  bits: 4" in said and "--accept-changes quantization.0.bits" in said


def test_a_refused_overwrite_leaves_the_run_that_it_was_to_replace(own: Path):
    """The fixture compares every file: a typo must not cost the finished model."""
    failing(3, *RUN, "--overwrite", "--set", "data.text_column=txt")
    failing(3, *RUN, "--accept-changes", "data.text_column", "--set", "data.text_column=txt")


def test_a_damaged_stage_exits_with_5(own: Path):
    path = own / "runs/quickstart/stages/student/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        said = failing(5, *RUN)
    finally:
        path.write_bytes(whole)
    assert "stages/student/model.safetensors" in said


def test_a_folder_at_work_exits_with_4(own: Path):
    from hf_shrink.workspace import Workspace

    first = Workspace(own / "runs/quickstart")
    try:
        assert "another run" in failing(4, *RUN)
    finally:
        first.close()


def test_too_small_a_disk_exits_with_4_before_the_first_step(own: Path, monkeypatch: pytest.MonkeyPatch):
    """After a night of training the checkpoint does not fit."""
    from hf_shrink.training import space

    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100_000))
    said = failing(4, *NEW, "--set", "training.save_strategy=steps", "--set", "training.save_steps=1")
    assert "needs" in said and "100 kB free" in said and not (own / "runs/new").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ShrinkError("no"), 1),
        (errors.RecipeError("no"), 2),
        (errors.MismatchError("no"), 3),
        (errors.NonFiniteError("no"), 3),
        (errors.ResourceError("no"), 4),
        (errors.IntegrityError("no"), 5),
        (errors.SecurityError("no"), 6),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (OSError(errno.ENOSPC, "No space left on device", "a/model.safetensors"), 4),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 4),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 4),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), 4),
        (RuntimeError("Error while reading: I/O error: No such file or directory (os error 2)"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 1),
        (RuntimeError("two\nlines"), 1),
        (KeyError(), 1),
    ],
    ids=repr,
)
def test_every_kind_of_error_has_its_exit_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]):
    """A full disk that looks like a bug is reported as one, and tried again by nobody."""

    @reported
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    said = capsys.readouterr().err
    assert caught.value.exit_code == code and len(said.splitlines()) <= 3 and "Traceback" not in said


def test_an_error_never_shows_the_home_folder(capsys: pytest.CaptureFixture[str]):
    """Errors end up in public logs."""

    @reported
    def command() -> None:
        raise OSError(f"cannot open {Path.home()}/model\nmore\nand more\nand more")

    with pytest.raises(typer.Exit):
        command()
    said = capsys.readouterr().err
    assert "~/model" in said and str(Path.home()) not in said and len(said.splitlines()) <= 3


@pytest.mark.parametrize("words", ["compare runs/quickstart", "inspect runs/quickstart", "plan recipes/quickstart.yaml"])
def test_json_is_one_object(project: Path, words: str):
    """JSON inside a JSON string parses, and then nothing is found in it."""
    assert isinstance(json.loads(warm.hf_shrink(*words.split(), "--json", cwd=project).stdout), dict)
