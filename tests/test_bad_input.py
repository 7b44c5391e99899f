"""Bad input at the command line: the stated exit code, at most three lines, before any training, and no file touched."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_shrink.cli import app
from hf_shrink.files import files_below, sha256

RECIPE = Path("recipes/quickstart.yaml")

TEXTS = {
    "broken": (lambda text: text + "pruning: [", 2, "not valid YAML"),
    "tab": (lambda text: text.replace("  max_length", "\tmax_length"), 2, "not valid YAML"),
    "nul": (lambda text: text + "\0", 2, "not valid YAML"),
    "empty": (lambda text: "", 2, "not valid YAML"),
    "a list": (lambda text: "- a\n- b\n", 2, "not valid YAML"),
    "unknown key": (lambda text: text.replace("sparsity", "sparcity"), 2, "did you mean 'sparsity'"),
    "duplicate key": (lambda text: text + "\nseed: 3\n", 2, "twice"),
    "a tag": (lambda text: text + "\nrevision: !!python/object/apply:os.getcwd []\n", 6, "tag"),
    "too large": (lambda text: text + "#" * (1 << 18), 2, "256 KiB"),
    "too deep": (lambda text: text + "\npublishing: " + "[" * 40 + "]" * 40 + "\n", 2, "32"),
}

SETTINGS = {
    **{f"sparsity {value}": ([f"pruning.0.sparsity={value}"], 2, "[0, 1)") for value in ("1.0", "-0.1", "1.5", ".nan", ".inf")},
    "sparsity text": (['pruning.0.sparsity="0.5"'], 2, "sparsity"),
    "sparsity true": (["pruning.0.sparsity=true"], 2, "sparsity"),
    "window": (["pruning.0.begin_step=2"], 2, "never fires"),
    "negative step": (["pruning.0.begin_step=-1"], 2, "begin_step"),
    "late end": (["pruning.0.end_step=5000"], 2, "5000 > 2 steps"),
    "no target": (["pruning.0.target_modules=[ouput.dense]"], 2, "matches 0 of"),
    "two claims": (["pruning=[{structure: ffn, sparsity: 0.5}, {structure: ffn, sparsity: 0.25}]"], 2, "pruning.1"),
    "temperature": (["distillation.losses.0.temperature=0"], 2, "temperature"),
    "alpha": (["distillation.alpha=1.5"], 2, "[0, 1]"),
    "missing column": (["data.label_column=colour"], 3, "'text', 'label'"),
    "no such file": (["data.dataset=data/nothing.csv"], 2, "nothing.csv"),
    "not cached": (["teacher.model=nobody/nothing", "model=nobody/nothing"], 4, "nobody/nothing"),
    "learning rate text": (["training={max_steps: 2, learning_rate: fast}"], 2, "learning_rate"),
    "unknown training word": (["training={max_step: 2}"], 2, "max_steps"),
}


def refused(own: Path, words: list[str], code: int, says: str, *, lines: int = 3) -> None:
    """The command ends with ``code``, a short message with ``says``, and every file as it was."""
    before = {path: sha256(path) for path in files_below(own)}
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.stderr
    assert says.lower() in done.stderr.lower(), done.stderr
    assert len(done.stderr.strip().splitlines()) <= lines and "Traceback" not in done.stderr and done.stdout == ""
    assert str(Path.home()) not in done.stderr or len(str(Path.home())) < 2
    assert {path: sha256(path) for path in files_below(own)} == before


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_that_is_no_recipe(own: Path, name: str):
    """YAML that half works trains half of what was meant."""
    change, code, says = TEXTS[name]
    RECIPE.write_text(change(RECIPE.read_text()))
    refused(own, ["run", str(RECIPE)], code, says)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_value_that_cannot_be_meant(own: Path, name: str, command: str):
    """What plan lets through, run must not find after the training, and the other way round."""
    overrides, code, says = SETTINGS[name]
    words = [command, str(RECIPE), *(word for one in [*overrides, "output_dir=runs/new"] for word in ("--set", one))]
    refused(own, words, code, says)


@pytest.mark.parametrize(("row", "says"), [("the red door,purple", "purple"), ("the red door,", "row")])
def test_a_row_that_cannot_be_used_is_named(own: Path, row: str, says: str):
    with (own / "data/validation.csv").open("a") as file:
        file.write(f"{row}\n")
    refused(own, ["run", str(RECIPE), "--set", "output_dir=runs/new"], 3, says)


def test_an_empty_split_says_where(own: Path):
    (own / "data/test.csv").write_text("text,label\n")
    refused(own, ["run", str(RECIPE), "--set", "output_dir=runs/new"], 3, "0 rows")


def test_a_folder_of_somebody_else(own: Path):
    (own / "runs/new").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (own / "runs/new" / name).write_text("mine")
    refused(own, ["run", str(RECIPE), "--set", "output_dir=runs/new"], 2, "a.txt, b.txt, c.txt and 1 more")


def test_a_folder_that_is_a_file(own: Path):
    (own / "runs/new").write_text("mine")
    refused(own, ["run", str(RECIPE), "--set", "output_dir=runs/new"], 4, "is a file")


def test_a_changed_recipe_shows_its_diff(own: Path):
    refused(own, ["run", str(RECIPE), "--set", "pruning.0.sparsity=0.25"], 2, "--accept-changes pruning.0.sparsity", lines=30)


def test_a_checkpoint_that_lacks_a_tensor(own: Path):
    """Stock loading fills it with random numbers and goes on."""
    from safetensors.torch import load_file, save_file

    weights = load_file(own / "base/model.safetensors")
    name = next(key for key in weights if key.endswith("query.weight"))
    del weights[name]
    save_file(weights, own / "base/model.safetensors", metadata={"format": "pt"})
    words = ["run", str(RECIPE), "--set", "output_dir=runs/new", "--set", "student.start=model"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3 and "query.weight" in done.stderr


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_missing_library_is_named_before_the_training(own: Path, command: str, monkeypatch: pytest.MonkeyPatch):
    """It is needed in the last stage only: found there, it has cost the whole training."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused(own, [command, str(RECIPE), "--set", "output_dir=runs/new"], 4, "pip install bitsandbytes")
