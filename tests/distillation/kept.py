"""A tiny teacher cache and the texts it is written for."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from hf_shrink.distillation.cache_writing import write_cache
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig
from hf_shrink.files import files_below
from tests.tiny import tiny_classifier, tiny_tokenizer

TEXTS = [
    "red bird",
    "the green house of a song",
    "blue",
    "a lamp a door",
    "the red road",
    "song",
    "a stone",
    "green tree of the river",
]


class Slow(torch.nn.Module):
    """Looks its answers up: five words at each token. Small enough to be forked at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return {"logits": self.table(input_ids)}


def rows(texts=TEXTS) -> Dataset:
    return Dataset.from_dict(dict(tiny_tokenizer()(list(texts))))


def collate(batch):
    return DataCollatorWithPadding(tiny_tokenizer())(batch)


def write(folder: Path, teacher=None, data=None, **words) -> CachedTeacher:
    settings = {name: words.pop(name) for name in ("dtype", "top_k") if name in words}
    return write_cache(
        CacheConfig(folder=str(folder), **settings), teacher or tiny_classifier(), data or rows(), collate, **words
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files_below(folder)}
