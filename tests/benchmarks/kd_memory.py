"""Memory and time of distillation over a large vocabulary: all logits at once against a few rows at a time.

    python -m tests.benchmarks.kd_memory [--threads 1] [--repeats 3] [--part loss|kept|uld|step|step-bf16|all] [--json out.json]

`loss`: forward and backward of cross-entropy + KL, with the heads, at 2,048 tokens x 49,152 words x 576 hidden; peak memory
above the inputs; where TRL is installed its two losses stand beside, the chunked one and that of GKD, both without the
cross-entropy, and all must give the same KL. `kept`: the same with a teacher whose 64 likeliest words come from a cache.
`uld`: the loss across tokenizers, with all rows sorted at once, a few at a time, and fused. `step`: a whole step of
ShrinkTrainer in the shape of SmolLM2-135M, 10 of its 30 layers as the student, 4 x 512 tokens; peak memory above what the
models take. `step-bf16`: the same with bf16: true, once, not in `all`: a CPU without AVX512-BF16 emulates it, slowly. All else
is float32. Each number comes from a process of its own (peak resident memory, which the system counts; heap not given back by
an earlier part would blur it); the two ways take turns and the medians count. Time is processor time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_shrink.measurement.memory import _reset_peak, _resident

TOKENS, WORDS, WIDTH = 2048, 49152, 576
GOALS = {"loss": 0.15, "kept": None, "uld": None, "step": 0.55, "step-bf16": 0.55}
TRL = ("trl-chunked", "trl-gkd")


def ways_of(part: str) -> tuple[str, ...]:
    """How one part is done: at first as everybody would."""
    if part == "uld":
        return ("full", "pieces", "fused")
    return ("full", "fused", *(TRL if part == "loss" and find_spec("trl") else ()))


def loss(way: str, part: str = "loss") -> tuple[int, float, float]:
    """Peak bytes above the inputs and seconds of one loss with its backward, and its mean over the tokens."""
    from hf_shrink.distillation import across
    from hf_shrink.distillation.fused import LastProduct, fused_sum
    from hf_shrink.distillation.losses import LOSSES
    from hf_shrink.distillation.merged import keep, merge

    if part == "uld" and way == "full":
        across.PIECE = TOKENS * WORDS
    function = LOSSES["uld" if part == "uld" else "forward_kl"].function
    theirs = _trl(way) if way in TRL else None

    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(TOKENS, WIDTH).requires_grad_(), torch.randn(TOKENS, WIDTH)
    head, teacher_head = nn.Linear(WIDTH, WORDS, bias=False), nn.Linear(WIDTH, WORDS, bias=False).requires_grad_(False)
    labels, factors = torch.randint(WORDS, (TOKENS,)), torch.tensor([0.5, 0.5]) / TOKENS

    kept = keep(torch.randn(TOKENS, 128), 64, (2.0,)) if part == "kept" else None

    def sums(student: torch.Tensor, teacher: Any, rows: slice = slice(None)) -> torch.Tensor:
        task = F.cross_entropy(student, labels[rows], reduction="sum")
        if kept is not None:
            student, teacher = merge(student, teacher.ids, 2.0), teacher.logits(2.0)
        return torch.stack([task, function(student, teacher, temperature=2.0).sum()])

    _reset_peak()
    before, start = _resident("VmRSS"), time.process_time()
    if theirs is not None:
        total = theirs(hidden, teacher_hidden, head, teacher_head)
        value = 4.0 * total.item()  # the square of the temperature is not in it
    elif way == "fused":
        taught = LastProduct(teacher_hidden, teacher_head.weight, None) if kept is None else kept.__getitem__
        total, found = fused_sum(hidden, head, taught, sums, factors)
        value = found[1].item() / TOKENS
    else:
        found = sums(head(hidden), teacher_head(teacher_hidden) if kept is None else kept)
        total, value = found @ factors, found[1].item() / TOKENS
    total.backward()
    return _resident("VmHWM") - before, time.process_time() - start, value


def _trl(way: str) -> Any:
    """TRL's forward KL of hidden states and heads, a mean over the tokens, at temperature 2."""
    if way == "trl-chunked":
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def chunked(ours: Any, theirs: Any, head: Any, other: Any) -> torch.Tensor:
            states, mask = (ours[None], theirs[None]), torch.ones(1, TOKENS)
            found: torch.Tensor = _chunked_divergence_loss(*states, head.weight, other.weight, mask, beta=0.0, temperature=2.0)[
                0
            ]
            return found

        return chunked
    from trl.experimental.gkd import GKDTrainer

    def gkd(ours: Any, theirs: Any, head: Any, other: Any) -> torch.Tensor:
        found: torch.Tensor = GKDTrainer.generalized_jsd_loss(head(ours), other(theirs), beta=0.0, temperature=2.0)
        return found

    return gkd


def step(way: str, *, bf16: bool = False) -> tuple[int, float, float]:
    """Peak bytes above both models and seconds of one step of the Trainer, and its loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments, default_data_collator

    from hf_shrink import DistillationConfig, LossTerm, ShrinkTrainer
    from hf_shrink.training.taught import TaughtTrainer

    if way == "full":
        TaughtTrainer.streams = lambda *_: False  # type: ignore[method-assign]
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
    student, teacher = (AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers, **shape)) for layers in (10, 30))
    rows = torch.randint(WORDS, (4, 512)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        words: dict[str, Any] = {
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": bf16,
        }
        trainer = ShrinkTrainer(
            model=student,
            args=TrainingArguments(folder, disable_tqdm=True, **words),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
            data_collator=default_data_collator,
            teacher=teacher,
            distillation=DistillationConfig(alpha=0.5, losses=(LossTerm(temperature=2.0),)),
        )
        _reset_peak()
        before, start = _resident("VmRSS"), time.process_time()
        trainer.train()
    assert (way == "fused") == (trainer._heads is not None)
    return _resident("VmHWM") - before, time.process_time() - start, trainer.state.log_history[-1]["train_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=(*GOALS, "all"), default="all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    if words.one:
        part, way = words.one
        print(json.dumps(step(way, bf16=part == "step-bf16") if part.startswith("step") else loss(way, part)))
        return
    found = {part: _part(part, words) for part in ([*GOALS][:4] if words.part == "all" else (words.part,))}
    if words.json:
        words.json.write_text(json.dumps({"threads": words.threads, "repeats": words.repeats, "parts": found}, indent=1))


def _part(part: str, words: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.kd_memory", "--threads", str(words.threads), "--one", part]
    ways = ways_of(part)
    runs: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(1 if part == "step-bf16" else words.repeats):
        for way in ways:
            done = subprocess.run([*command, way], capture_output=True, text=True, check=True)
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {way: [statistics.median(column) for column in zip(*found, strict=True)] for way, found in runs.items()}
    ratios = {}
    for way, (memory, seconds, value) in medians.items():
        full = medians["full"]
        ratios[way] = [memory / full[0], seconds / full[1]]
        shown = f"{part:5}{way:12}{memory / 2**20:8.0f} MiB{seconds:8.1f} s"
        print(f"{shown}{ratios[way][0]:8.3f} of the memory{ratios[way][1]:7.2f} of the time")
        assert abs(value - full[2]) <= (1e-2 if part == "step-bf16" else 1e-4) * abs(full[2]), (
            f"{way}: {value} instead of {full[2]}: another loss"
        )
    if part == "loss" and not find_spec("trl"):
        print("loss TRL not installed")
    if GOALS[part]:
        print(f"{part:5}goal: fused at most {GOALS[part]} of the memory")
    return {"runs": runs, "ratios": ratios, "goal": GOALS[part]}


if __name__ == "__main__":
    main()
