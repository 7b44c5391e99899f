"""A tiny language model that loses something in 4 bits, and a run that gives it back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from hf_shrink import Recipe, run
from hf_shrink.loading.save import save
from tests.project import make_lm_project

FOLDER = Path("runs/lm")


def recipe_of(recovery: str, *overrides: str) -> Recipe:
    """The recipe of ``lossy_run`` with ``recovery`` as that section."""
    text = f"""
version: 1
task: causal-lm
model: base
output_dir: {FOLDER}
data: {{dataset: data, max_length: 16}}
training: {{max_steps: 1, per_device_train_batch_size: 4, use_cpu: true}}
quantization: {{bits: 4}}
recovery: {recovery}
measurement: {{batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
"""
    return Recipe.from_text(text, overrides=overrides)


def lossy_run(folder: Path, recipe: Recipe) -> Path:
    """``folder`` with base, data and the finished run of ``recipe``."""
    make_lm_project(folder, layers=2)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    for parameter in base.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    save(base, folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(recipe)
    return folder


def copied(finished: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy of ``finished`` in ``folder``, as the current folder."""
    shutil.copytree(finished, folder / "own")
    patch.chdir(folder / "own")
    return folder / "own"


def report(folder: Path = FOLDER) -> dict[str, Any]:
    """What a run says of itself."""
    found: dict[str, Any] = json.loads((folder / "hf_shrink_report.json").read_text())
    return found


def value(stage: dict[str, Any], name: str) -> float:
    """One number of a stage of a report."""
    return float(next(m["value"] for m in stage["measurements"] if m["name"] == name))
