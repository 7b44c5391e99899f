"""Three of MiniLM's six layers on SST-2: which way of learning from the teacher is best, and what it gains over labels alone.

    python -m tests.benchmarks.distilled --data FOLDER --output OUT choose [--seeds 0 1 2] [--only NAME ...]
    python -m tests.benchmarks.distilled --data FOLDER --output OUT report NAME [--seeds 0 1 2 3 4]

Data, setting and teacher of quality.py: 150 steps of 32 sentences, AdamW, 1e-4 falling linearly, embeddings frozen, one thread.
``choose`` trains teacher and students on nine tenths of train and judges by the last tenth, so that the development set, which
``report`` reads once for the way that was chosen and for labels alone, chooses nothing. Layers that are fitted to stand for
those that left see 16 batches for it, which count as steps. Runs that OUT holds are not run again.
"""

import argparse
import copy
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_shrink import DistillationConfig, LossTerm, ShrinkTrainer
from hf_shrink.pruning.layers import drop_layers
from tests.benchmarks.quality import CALIBRATION, STEPS, Data, accuracy, paired, read, teacher_for, train

EVEN, EVERY_SECOND, BEST = (
    (0, 2, 5),
    (0, 2, 4),
    (1, 4, 5),
)  # BEST has the least KL to the teacher of all 20 triples before training, on the tenth


@dataclass(frozen=True)
class Way:
    """Which layers the student keeps, what it learns from, and whether they are fitted before to stand for the others."""

    layers: tuple[int, ...]
    distillation: DistillationConfig | None = None
    fitted: bool = False


def taught(*terms: LossTerm, alpha: float = 0.9) -> DistillationConfig:
    return DistillationConfig(alpha=alpha, losses=terms)


SOFT = LossTerm(loss="forward_kl", temperature=2.0)
LABELS = "labels"
WAYS = {
    LABELS: Way(EVEN),
    "kl 3, alpha 0.7": Way(EVEN, taught(LossTerm(loss="forward_kl", temperature=3.0), alpha=0.7)),
    "kl 2": Way(EVEN, taught(SOFT)),
    "kl 2, alpha 1": Way(EVEN, taught(SOFT, alpha=1.0)),
    "logit mse": Way(EVEN, taught(LossTerm(loss="logit_mse"))),
    "kl 2, hidden": Way(EVEN, taught(SOFT, LossTerm(loss="hidden_mse"))),
    "kl 2, hidden 10": Way(EVEN, taught(SOFT, LossTerm(loss="hidden_mse", weight=10.0))),
    "kl 2, pkd": Way(EVEN, taught(SOFT, LossTerm(loss="pkd", weight=10.0))),
    "kl 2, values": Way(EVEN, taught(SOFT, LossTerm(loss="value_relation_kl"))),
    "least KL, labels": Way(BEST),
    "least KL, kl 2": Way(BEST, taught(SOFT)),
    "least KL, kl 2, hidden": Way(BEST, taught(SOFT, LossTerm(loss="hidden_mse"))),
    "fitted, labels": Way(EVERY_SECOND, fitted=True),
    "fitted, kl 2": Way(EVERY_SECOND, taught(SOFT), fitted=True),
    "fitted, kl 2, hidden": Way(EVERY_SECOND, taught(SOFT, LossTerm(loss="hidden_mse")), fitted=True),
    "fitted uniform, kl 2, hidden": Way(EVEN, taught(SOFT, LossTerm(loss="hidden_mse")), fitted=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parts = parser.add_subparsers(dest="part", required=True)
    choose = parts.add_parser("choose")
    choose.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS))
    choose.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    report = parts.add_parser("report")
    report.add_argument("way", choices=WAYS)
    report.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    data = read(words.data)
    names = words.only if words.part == "choose" else [LABELS, words.way]
    if words.part == "choose":
        cut = len(data.train) * 9 // 10
        data = replace(data, train=data.train[:cut], dev=data.train[cut:])
    words.output.mkdir(parents=True, exist_ok=True)
    teacher = teacher_for(data, words.output / f"teacher-{words.part}")
    print(f"teacher: {accuracy(teacher, data):.2f}", flush=True)
    found = {name: [run(words, name, seed, teacher, data) for seed in words.seeds] for name in names}
    for name, scores in found.items():
        print(f"{name:28}{statistics.mean(scores):7.2f}  " + " ".join(f"{score:.2f}" for score in scores))
    if words.part == "report":
        mean, low, high = paired(found[words.way], found[LABELS])
        print(f"above labels: {mean:+.2f} points [{low:+.2f}, {high:+.2f}]")


def run(words: argparse.Namespace, name: str, seed: int, teacher: Any, data: Data) -> float:
    """Accuracy of one student, trained unless it was before."""
    kept = words.output / f"{words.part}, {name}, {seed}.json"
    if not kept.exists():
        way = WAYS[name]
        ours: dict[str, Any] = {}
        if way.distillation is not None:
            ours = {"teacher": copy.deepcopy(teacher), "distillation": way.distillation}
        student = drop_layers(teacher, way.layers, reconstruct=data.calibration() if way.fitted else None).requires_grad_(True)
        steps = STEPS - CALIBRATION if way.fitted else STEPS  # a batch of calibration counts as a step
        train(ShrinkTrainer if ours else Trainer, student, data, seed=seed, steps=steps, **ours)
        kept.write_text(json.dumps({"way": name, "seed": seed, "accuracy": accuracy(student, data)}))
        print(kept.read_text(), flush=True)
    return float(json.loads(kept.read_text())["accuracy"])


if __name__ == "__main__":
    main()
