"""What quantisation-aware training gives back of nf4 and int8, beside quantising alone: MiniLM on SST-2. See README.md.

    python -m tests.benchmarks.qat --data FOLDER [--seeds 0 1 2] [--steps 40] [--rates 3e-5] [--teacher FOLDER]

FOLDER holds ``train.tsv`` and ``dev.tsv`` as for ``quality``, whose model this is. Every training starts from it and learns
from it by ``forward_kl`` alone, embeddings frozen; a seed is the order of the data and the dropout.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

from hf_shrink import DistillationConfig, LossTerm, QuantizationConfig, ShrinkTrainer, quantize
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.straight_through import check_stored, roundings_of
from tests.benchmarks import quality

FORMATS = {
    "nf4": QuantizationConfig(bits=4),
    "fp4": QuantizationConfig(bits=4, quant_type="fp4"),
    "int8": QuantizationConfig(bits=8),
}


def trained(dense: Any, data: quality.Data, config: QuantizationConfig, *, seed: int, steps: int, dropout: bool) -> Any:
    """A copy of ``dense`` that learnt from it with its weights rounded, stored."""
    student = copy.deepcopy(dense).requires_grad_(True)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    kl = DistillationConfig(alpha=1.0, losses=(LossTerm(loss="forward_kl"),))
    ours = {"teacher": copy.deepcopy(dense), "distillation": kl, "quantization": config}
    quality.train(ShrinkTrainer, student, data, seed=seed, steps=steps, **ours)
    small = quantize(student, config)
    check_stored(student, small, roundings_of(student, config))
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="of 32 sentences")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["nf4", "int8"])
    parser.add_argument("--teacher", type=Path, help="folder of the fine-tuned model; made where it does not exist")
    parser.add_argument("--dropout", action="store_true", help="train with the model's dropout")
    words = parser.parse_args()
    torch.set_num_threads(1)
    data = quality.read(words.data)
    dense = quality.teacher_for(data, words.teacher)
    judge = Divergence(dense, data.batches(data.dev, quality.BATCH))

    def tell(what: str, model: Any, seconds: float = 0.0) -> None:
        line = {"model": what, "accuracy": round(quality.accuracy(model, data), 2), "kl": float(f"{judge.of(model):.3g}")}
        print(json.dumps({**line, "seconds": round(seconds, 1)}), flush=True)

    tell("dense", dense)
    for name in words.formats:
        tell(name, quantize(dense, FORMATS[name]))
        for rate in words.rates:
            quality.LEARNING_RATE = rate
            for seed in words.seeds:
                began = time.process_time()
                small = trained(dense, data, FORMATS[name], seed=seed, steps=words.steps, dropout=words.dropout)
                tell(f"{name}, {words.steps} steps at {rate:g}, seed {seed}", small, time.process_time() - began)


if __name__ == "__main__":
    main()
