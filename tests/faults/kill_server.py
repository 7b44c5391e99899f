"""Kills a training at random times, over and over, and says what came of it. Run as ``python -m tests.faults.kill_server``.

Everything slow is imported once; each attempt is a fork. The server itself never computes with torch and never opens a data
set, so that no thread pool exists before a fork. Arguments: a folder and how many kills. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, TrainerCallback

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.training.store import STAGING, checkpoints
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import COLOURS, VOCABULARY, tiny_classifier, tiny_tokenizer
from tests.training.runs import arguments, digest

SAVE_STEPS, MAX_STEPS = 1, 12


def rows(number: int) -> list[dict[str, Any]]:
    """Ragged token rows around one colour, made without a data set library."""
    draw, colours = random.Random(0), len(COLOURS)
    made = []
    for _ in range(number):
        words = [draw.randrange(4 + colours, len(VOCABULARY)) for _ in range(draw.randrange(3, 12))]
        label = draw.randrange(colours)
        words.insert(draw.randrange(len(words)), 4 + label)
        made.append({"input_ids": [2, *words, 3], "attention_mask": [1] * (len(words) + 2), "labels": label})
    return made


class Journal(TrainerCallback):
    """Writes down where an attempt starts and each step it ends, past any buffer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, *entry: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.note("start", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.note("step", state.global_step)


def train(folder: Path, journal: Path, data: list[dict[str, Any]], tokenizer: Any) -> None:
    """One attempt: distillation, pruning, dropout, accumulation, evaluation, rotation; resumes where it can.

    Few weights are removed and the steps are long: without its mask a removed weight would outgrow others at once.
    """
    torch.set_num_threads(1)
    log = Journal(journal)
    trainer = ShrinkTrainer(
        tiny_classifier("bert"),
        arguments(
            folder,
            max_steps=MAX_STEPS,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=4,
            learning_rate=0.03,
        ),
        DataCollatorWithPadding(tokenizer),
        data,
        data[:16],
        tokenizer,
        callbacks=[log],
        teacher=tiny_classifier("bert", seed=5),
        distillation=DistillationConfig(alpha=0.5, losses=(LossTerm(temperature=2.0),)),
        pruning=PruningConfig(sparsity=0.05, begin_step=1, end_step=MAX_STEPS - 2),
    )
    trainer.train(resume_from_checkpoint=True if checkpoints(folder) else None)
    log.note("done", digest(trainer.model))


def attempt(folder: Path, journal: Path, data: list[dict[str, Any]], tokenizer: Any, seconds: float) -> tuple[str, float]:
    """Fork, wait, kill: ``killed``, ``done`` or ``failed``, and how long it lived."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with journal.with_suffix(".log").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                train(folder, journal, data, tokenizer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    while time.monotonic() - began < seconds:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return ("done" if status == 0 else "failed"), time.monotonic() - began
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return ("killed" if os.WIFSIGNALED(status) else "done"), time.monotonic() - began


def inode(path: Path) -> int | None:
    """Tells a staging folder of this attempt from one an earlier attempt left."""
    return path.stat().st_ino if path.exists() else None


def entries(journal: Path) -> list[list[Any]]:
    """The journal, without a line that a kill cut short."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return [json.loads(line) for line in lines]


def most_lost(journal: Path) -> int:
    """Most steps any resume had to do again."""
    lost, last = 0, 0
    for kind, value in entries(journal):
        if kind == "start":
            lost = max(lost, last - value)
        if kind == "step":
            last = value
    return lost


def main(root: Path, kills: int) -> dict[str, Any]:
    """Runs until ``kills`` kills have happened; the run they happened to is finished."""
    draw = random.Random(1)
    data, tokenizer = rows(40), tiny_tokenizer()
    results: dict[str, Any] = {"kills": 0, "in_save": 0, "runs": 0, "stuck": 0, "differing": 0, "most_lost": 0}
    state, lifetime = attempt(root / "whole", root / "whole.jsonl", data, tokenizer, 600)
    assert state == "done", (root / "whole.log").read_text()
    expected = entries(root / "whole.jsonl")[-1]
    while results["kills"] < kills:
        folder, journal = root / f"run-{results['runs']}", root / f"run-{results['runs']}.jsonl"
        results["runs"] += 1
        state = "killed"
        while state == "killed":
            before = inode(folder / STAGING)
            seconds = draw.uniform(0, lifetime) if results["kills"] < kills else 600
            state, _ = attempt(folder, journal, data, tokenizer, seconds)
            results["kills"] += state == "killed"
            results["in_save"] += state == "killed" and inode(folder / STAGING) not in (None, before)
        results["stuck"] += state == "failed"
        results["differing"] += state == "done" and entries(journal)[-1] != expected
        results["most_lost"] = max(results["most_lost"], most_lost(journal))
    return results | {"lifetime": round(lifetime, 2), "save_steps": SAVE_STEPS}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
