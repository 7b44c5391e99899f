"""Short trainings of tiny models, the same for the same arguments."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import colour_tokens, tiny_causal_lm, tiny_classifier, tiny_tokenizer

NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
}

TASKS = [(family, "classification") for family in ("bert", "distilbert", "gpt2", "llama")] + [("gpt2", "lm"), ("llama", "lm")]


def model_for(family: str, task: str, *, seed: int = 0, dropout: bool = True, **config: Any) -> Any:
    """A tiny model of ``family`` for ``task``: classification or lm."""
    more = config | ({} if dropout else NO_DROPOUT[family])
    return (tiny_classifier if task == "classification" else tiny_causal_lm)(family, seed=seed, **more)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    """Silent, on the CPU, without files unless asked for."""
    words = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 5e-3,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return TrainingArguments(**words | more)


@cache
def tokens(rows: int, seed: int) -> Dataset:
    """``colour_tokens``, made once: its progress bars and fingerprints cost more than a tiny training."""
    return colour_tokens(rows, seed=seed)


def trainer_for(
    family: str,
    task: str,
    folder: Path,
    *,
    kind: type[Trainer] = ShrinkTrainer,
    rows: int = 48,
    model: Any = None,
    more: dict[str, Any] | None = None,
    dropout: bool = True,
    **words: Any,
) -> Any:
    """A trainer on the colour texts: ragged lengths; ``more`` goes to the trainer, ``words`` to TrainingArguments."""
    tokenizer = tiny_tokenizer()
    train, held_out = tokens(rows, 1), tokens(16, 2)
    collator = None
    if task == "lm":
        train, held_out = train.remove_columns("labels"), held_out.remove_columns("labels")
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return kind(
        model=model or model_for(family, task, dropout=dropout),
        args=arguments(folder, **words),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        **more or {},
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every weight and buffer by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal names, bit for bit equal values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def digest(model: nn.Module) -> str:
    """sha256 over every weight and buffer."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The log without the entries that tell how long things took."""
    timing = ("runtime", "per_second")
    return [{k: v for k, v in entry.items() if not k.endswith(timing)} for entry in trainer.state.log_history]


@contextmanager
def gradient_norms(trainer: Any) -> Iterator[list[float]]:
    """Collects the norm of the gradient before each update."""
    norms: list[float] = []
    inner = trainer._get_grad_norm
    trainer._get_grad_norm = lambda *args, **kwargs: norms.append(float(inner(*args, **kwargs))) or norms[-1]
    yield norms
