"""Every kind of damage to every file of the newest checkpoint is seen, and costs one checkpoint, not the run."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import IntegrityError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.training.store import newest_whole
from tests.training.runs import digest, model_for, trainer_for

pytestmark = pytest.mark.faults


def truncate(path: Path, older: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path, older: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "delete": lambda path, older: path.unlink(),
    "truncate": truncate,
    "zero": lambda path, older: path.write_bytes(bytes(path.stat().st_size)),
    "flip one bit": flip,
    "swap with older": lambda path, older: shutil.copyfile(older, path),
}


def run(folder: Path):
    more = {
        "teacher": model_for("bert", "classification", seed=5),
        "distillation": DistillationConfig(alpha=0.5, losses=(LossTerm(),)),
        "pruning": PruningConfig(sparsity=0.05, end_step=5),
    }
    words = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6, "learning_rate": 0.03}
    return trainer_for("bert", "classification", folder, rows=16, more=more, **words)


@pytest.mark.timeout(900)
def test_all_damage_is_seen_and_the_run_falls_back(tmp_path, capsys):
    """Of fourteen such faults the stock Trainer resumes three in silence, with other weights."""
    whole = run(tmp_path / "whole")
    whole.train()
    shutil.rmtree(tmp_path / "whole" / "checkpoint-6")
    newest, older = (tmp_path / "whole" / f"checkpoint-{step}" for step in (4, 2))
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert {"model.safetensors", "optimizer.pt", "pruning_masks.safetensors", "rng_state.pth"} <= {str(file) for file in files}
    totals: Counter[str] = Counter(files=len(files))
    for file in files:
        for name, damage in DAMAGE.items():
            folder = tmp_path / "damaged"
            shutil.copytree(tmp_path / "whole", folder)
            damage(folder / newest.name / file, older / file)
            damaged = folder / newest.name / file
            if damaged.exists() and damaged.read_bytes() == (newest / file).read_bytes():
                totals["same bytes in both steps"] += 1
            else:
                totals["damaged"] += 1
                found, faults = newest_whole(folder)
                totals["seen"] += bool(faults) and found == folder / older.name
                with pytest.raises(IntegrityError):
                    run(folder).train(resume_from_checkpoint=str(folder / newest.name))
                again = run(folder)
                again.train(resume_from_checkpoint=True)
                totals["ended with the same weights"] += digest(again.model) == digest(whole.model)
                assert totals["damaged"] == totals["seen"] == totals["ended with the same weights"], (file, name)
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\ncorruption: {dict(totals)}")
    assert totals["damaged"] >= 4 * len(files)
