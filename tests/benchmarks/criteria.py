"""Every criterion beside ``random``: MiniLM on SST-2, half of it gone at once, no training after it.

    python -m tests.benchmarks.criteria --data FOLDER --teacher TEACHER [--seeds 0 1 2] [--threads 1] [--output criteria.json]

FOLDER and TEACHER are those of ``tests.benchmarks.quality``, which fine-tunes the teacher. Half of the feed-forward neurons of
every layer, or half of the weights of every projection in the layers. A seed draws the 512 sentences that a criterion sees, and
the numbers of ``random``; data-free criteria have one result. What ``--output`` holds is not run again.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_shrink import PruningConfig, prune
from hf_shrink.models.load import load_for
from hf_shrink.pruning.criteria import CRITERIA, Criterion
from tests.benchmarks.quality import BATCH, CALIBRATION, Data, accuracy, read

STRUCTURES = ("ffn", "unstructured")
NAMES = (*CRITERIA, "sparsegpt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    data, teacher = read(words.data), load_for("text-classification", str(words.teacher), new_head=False)
    found: dict[str, float] = json.loads(words.output.read_text()) if words.output and words.output.exists() else {}
    found.setdefault("teacher", accuracy(teacher, data))
    for structure in STRUCTURES:
        for name in NAMES:
            for seed in words.seeds if _varies(name) else words.seeds[:1]:
                key = f"{structure} {name} {seed}"
                if key not in found and (config := _config(structure, name, seed)) is not None:
                    found[key] = accuracy(prune(teacher, config, _sentences(data, seed) if _reads(name) else None), data)
                    print(f"{key}: {found[key]:.2f}", flush=True)
                    if words.output:
                        words.output.write_text(json.dumps(found, indent=1))
    print(table(found))


def table(found: Mapping[str, float]) -> str:
    """One row a criterion: mean accuracy, spread over seeds, and points above ``random``."""
    rows = [f"teacher: {found['teacher']:.2f} %", "| criterion | ffn 50 % | above random | unstructured 50 % | above random |"]
    rows.append("| --- | ---: | ---: | ---: | ---: |")
    for name in NAMES:
        cells = []
        for structure in STRUCTURES:
            own, chance = ([v for k, v in found.items() if k.startswith(f"{structure} {n} ")] for n in (name, "random"))
            if not own:
                cells += ["", ""]
                continue
            spread = f" ({min(own):.2f} to {max(own):.2f})" if len(own) > 1 else ""
            cells += [f"{statistics.mean(own):.2f}{spread}", f"{statistics.mean(own) - statistics.mean(chance):+.2f}"]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _config(structure: str, name: str, seed: int) -> PruningConfig | None:
    """The entry, or None where the criterion is not defined for the structure."""
    words: dict[str, Any] = {"structure": structure, "sparsity": 0.5}
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        return PruningConfig(criterion=Criterion(lambda weight, stats: torch.rand(weight.shape, generator=generator)), **words)
    if (name == "sparsegpt" and structure == "ffn") or (structure == "unstructured" and _function_less(name)):
        return None
    return PruningConfig(criterion=name, **words)


def _function_less(name: str) -> bool:
    return name in CRITERIA and CRITERIA[name].function is None


def _reads(name: str) -> bool:
    return name == "sparsegpt" or CRITERIA[name].needs_data


def _varies(name: str) -> bool:
    return name == "random" or _reads(name)


def _sentences(data: Data, seed: int) -> list[Mapping[str, Tensor]]:
    picked = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: CALIBRATION * BATCH]
    return data.batches([data.train[i] for i in picked.tolist()], BATCH)


if __name__ == "__main__":
    main()
