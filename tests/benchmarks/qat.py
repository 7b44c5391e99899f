"""What quantisation-aware training gives back of nf4 and int8, beside quantising alone: MiniLM on SST-2. See README.md.

    python -m tests.benchmarks.qat --data FOLDER [--seeds 0 1 2] [--steps 20] [--rates 3e-5] [--teacher FOLDER]

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
from hf_shrink.quantization.roundings import roundings_of
from hf_shrink.quantization.straight_through import check_stored
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


class Judge:
    """Accuracy on the dev sentences, and the mean KL of the answers from those of the dense model, from one pass."""

    def __init__(self, dense: Any, data: quality.Data) -> None:
        self._batches = data.batches(data.dev, quality.BATCH)
        self._expected = self._logits(dense).log_softmax(-1)
        self._labels = torch.cat([batch["labels"] for batch in self._batches])

    def tell(self, what: str, model: Any, seconds: float = 0.0) -> None:
        """Print both, and the CPU seconds that it took to make the model."""
        found = self._logits(model).log_softmax(-1)
        kl = float((self._expected.exp() * (self._expected - found)).sum(-1).double().mean())
        accuracy = 100 * float((found.argmax(-1) == self._labels).double().mean())
        line = {"model": what, "accuracy": round(accuracy, 2), "kl": float(f"{kl:.3g}"), "seconds": round(seconds, 1)}
        print(json.dumps(line), flush=True)

    @torch.no_grad()
    def _logits(self, model: Any) -> torch.Tensor:
        model.eval()
        return torch.cat([model(**{k: v for k, v in batch.items() if k != "labels"}).logits for batch in self._batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20, help="of 32 sentences")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["nf4", "int8"])
    parser.add_argument("--teacher", type=Path, help="folder of the fine-tuned model; made where it does not exist")
    parser.add_argument("--dropout", action="store_true", help="train with the model's dropout")
    words = parser.parse_args()
    torch.set_num_threads(1)
    data = quality.read(words.data)
    dense = quality.teacher_for(data, words.teacher)
    judge = Judge(dense, data)
    judge.tell("dense", dense)
    for name in words.formats:
        judge.tell(name, quantize(dense, FORMATS[name]))
        for rate in words.rates:
            quality.LEARNING_RATE = rate
            for seed in words.seeds:
                began = time.process_time()
                small = trained(dense, data, FORMATS[name], seed=seed, steps=words.steps, dropout=words.dropout)
                judge.tell(f"{name}, {words.steps} steps at {rate:g}, seed {seed}", small, time.process_time() - began)


if __name__ == "__main__":
    main()
