"""The files of a teacher cache: damage, kills, a full disk, what is never written. What these prevent: training from a half
written, damaged or foreign cache."""

import hashlib
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from hf_shrink.distillation import cache_files, cache_writing
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.row_keys import row_keys
from hf_shrink.errors import IntegrityError, NonFiniteError, RecipeError, ResourceError, ShrinkError
from tests.distillation.kept import TEXTS, Slow, contents, rows, write


def test_the_files_are_those_of_the_datasets_library(tmp_path: Path):
    write(tmp_path, Slow(), top_k=2)
    read = Dataset.from_file(str(tmp_path / "rows-00000.arrow"))
    assert len(read) == len(TEXTS) and len(read[1]["values"]) == 2 * len(rows()[1]["input_ids"])


def test_the_predicted_bytes_are_about_those_on_the_disk(tmp_path: Path):
    """A disk that fills up after hours of teacher forwards."""
    data = rows(TEXTS * 60)
    tokens = sum(map(len, data["input_ids"]))
    for name, words in (("top", {"top_k": 2}), ("full", {"dtype": "float16"})):
        cached = write(tmp_path / name, Slow(), data, **words)
        there = sum(path.stat().st_size for path in tmp_path.glob(f"{name}/*.arrow"))
        assert cached.layout.bytes_for(tokens, len(data)) == pytest.approx(there, rel=0.25)


def test_any_flipped_bit_is_found_and_the_file_is_written_again(tmp_path: Path, small_files):
    write(tmp_path)
    fresh = contents(tmp_path)
    for name, content in fresh.items():
        if name.startswith("."):
            continue
        for place in (0, len(content) // 2, len(content) - 2):
            damaged = bytearray(content)
            damaged[place] ^= 1
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
                CachedTeacher.from_folder(tmp_path)
            if name == cache_files.MANIFEST:
                (tmp_path / name).write_bytes(content)
            else:
                write(tmp_path)
            assert contents(tmp_path) == fresh
    (tmp_path / "rows-00001.arrow").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        CachedTeacher.from_folder(tmp_path)


def killed_at(call: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Write in a fork that is killed at its ``call``-th fsync; whether it got that far."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1, 10_000))
        inner = os.fsync

        def fsync(descriptor):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            inner(descriptor)

        os.fsync = fsync
        try:
            write(folder, Slow(), top_k=2)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_cache_resumed_after_any_kill_equals_a_fresh_one(tmp_path: Path, small_files, monkeypatch: pytest.MonkeyPatch):
    """Half a file under its whole name, or a second beginning in the middle."""
    write(tmp_path / "fresh", Slow(), top_k=2)
    fresh, kills = contents(tmp_path / "fresh"), 0
    for call in range(1, 40):
        folder = tmp_path / str(call)
        if not killed_at(call, folder, monkeypatch):
            break
        kills += 1
        manifest = cache_files.read_manifest(folder)
        if manifest is None or not manifest.is_complete:
            with pytest.raises(ShrinkError):
                CachedTeacher.from_folder(folder)
        write(folder, Slow(), top_k=2)
        there = contents(folder)
        assert {name: there[name] for name in fresh} == fresh
        assert not [name for name in there if name.endswith(".partial")]
    assert kills == 14  # two for the first manifest, four for each of three files


def test_going_on_does_not_ask_the_teacher_again(tmp_path: Path, small_files, monkeypatch: pytest.MonkeyPatch):
    """A resume that begins anew costs the whole night again."""
    asked = []
    monkeypatch.setattr(cache_writing, "write_shard", lambda *words: asked.append(words[1]) or cache_files.write_shard(*words))
    write(tmp_path)
    (tmp_path / "rows-00002.arrow").unlink()
    write(tmp_path)
    write(tmp_path)
    assert asked == [0, 1, 2, 2]


def test_a_small_disk_and_other_files_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"thesis\.txt"):
        write(tmp_path)
    monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ResourceError, match=r"MB, 0\.0 MB free"):
        write(tmp_path / "new")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"top_k": 2}, RecipeError, "one answer a row"),
        ({"teacher": Slow(), "top_k": 6}, RecipeError, "the teacher has 5 words"),
    ],
)
def test_more_than_there_is_cannot_be_kept(words, error, says, tmp_path: Path):
    with pytest.raises(error, match=says):
        write(tmp_path, **words)


def test_a_number_that_is_none_is_never_written(tmp_path: Path):
    """A NaN on the disk would stop a training weeks later."""
    teacher = Slow()
    teacher.table.weight[6] = float("nan")
    with pytest.raises(NonFiniteError, match=r"row 2"):
        write(tmp_path / "nan", teacher)
    teacher.table.weight[6] = 1e5
    with pytest.raises(NonFiniteError, match="float16 is too small for row 2"):
        write(tmp_path / "large", teacher, dtype="float16")


def test_a_hash_costs_microseconds():
    """A slow hash would eat what the cache saves: 64 rows of 128 tokens in less than 5 ms."""
    batch = {"input_ids": torch.randint(30_000, (64, 128)), "attention_mask": torch.ones(64, 128, dtype=torch.long)}
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        keys = row_keys(batch, ("input_ids",)).keys
        best = min(best, time.perf_counter() - start)
    assert best < 5e-3
    assert keys[0] == hashlib.blake2b(batch["input_ids"][0].numpy().tobytes(), digest_size=16).digest()
