"""The ``cache`` section of a recipe: what its files depend on, how large they get, and what lies in a folder of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.splits import Splits
from hf_shrink.distillation.autocast import autocast_key, autocast_of
from hf_shrink.distillation.cache_files import Layout, first_fault, read_manifest, refuse_another
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig
from hf_shrink.distillation.row_keys import check_padding
from hf_shrink.distillation.vocabularies import shared_words
from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.lines import without_home
from hf_shrink.recipe import Recipe
from hf_shrink.tasks import SENTENCES

TOP_K = 64
"""Words kept at each position where a recipe does not say."""


def cache_key(recipe: Recipe, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the answers to a recipe's training rows depend on, beside the teacher's weights and the rows themselves.

    The rows are tokens already, and would be told apart without this: it says which of the causes it was.
    """
    words = recipe.data.model_dump(mode="json", include={"packing", "loss_on"}) if recipe.task == "causal-lm" else {}
    bits = ", ".join(str(teacher.bits or "float") for teacher in recipe.teachers)
    return {
        "task": recipe.task,
        **autocast_key(autocast_of(recipe.training)),
        **({"teacher bits": bits} if any(teacher.bits for teacher in recipe.teachers) else {}),
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": str(recipe.data.max_length),
        **{name: str(value) for name, value in words.items()},
        "data": splits.source["fingerprint of train"],
        "classes": hashlib.sha256(json.dumps(splits.label_names).encode()).hexdigest(),
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer's rules, as far as they say which tokens a text becomes; not of how batches are padded."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = {"tokens": sorted(tokenizer.get_vocab().items())}
    if backend is not None:
        rules = {name: value for name, value in json.loads(backend.to_str()).items() if name not in ("truncation", "padding")}
    rules["special"] = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def settings(recipe: Recipe, words: int | None) -> CacheConfig:
    """The section with ``top_k`` settled; ``words`` are those of the vocabulary that count, None where there is none."""
    assert recipe.cache is not None
    top_k = None if words is None else recipe.cache.top_k or min(TOP_K, words)
    return recipe.cache.model_copy(update={"top_k": top_k})


def temperatures(recipe: Recipe) -> tuple[float, ...]:
    """Those of the losses."""
    assert recipe.distillation is not None
    return tuple(sorted({term.temperature for term in recipe.distillation.losses}))


def words_that_count(recipe: Recipe, student: Any, teachers: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many words student and teachers share; None where the task is not about words.

    Raises:
        MismatchError: one of them lacks tokens.
    """
    if recipe.task != "causal-lm":
        return None
    ours, *others = (len(model.get_output_embeddings().weight) for model in (student, *teachers))
    return min(shared_words(ours, theirs, max(tokenizer.get_vocab().values()) + 1) for theirs in others)


def cache_outlook(
    recipe: Recipe,
    splits: Splits,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Sequence[Any],
    words: int | None,
) -> tuple[str, int]:
    """What the cache will hold in words, and about how many bytes.

    Raises:
        RecipeError: more words than there are.
        MismatchError: padding on the left, of which the teachers' answers depend.
        IntegrityError: the folder holds answers for something else, as far as can be told without the teacher's weights.
    """
    assert recipe.cache is not None
    teacher = teachers[0]
    check_padding(teachers, rows, splits.format.collator(tokenizer))
    if (there := read_manifest(Path(recipe.cache.folder))) is not None:
        now_and_then = dict.fromkeys({"autocast", "teacher bits"} & there.key.keys(), "none")
        refuse_another(Path(recipe.cache.folder), there.key, now_and_then | cache_key(recipe, splits, tokenizer))
    config, tokens = settings(recipe, words), sum(map(len, rows["input_ids"]))
    if config.top_k is not None and words is not None and config.top_k > words:
        raise RecipeError(f"cache.top_k: {config.top_k}, but there are {words} words; lower it.")
    per_token = recipe.task in ("causal-lm", "token-classification")
    outputs = words or int(teacher.config.hidden_size if recipe.task == SENTENCES else teacher.config.num_labels)
    times = temperatures(recipe) if config.top_k is not None and config.top_k < outputs else ()
    layout = Layout(outputs, per_token, config.top_k, times, config.dtype, (), (), len(rows), 1, 1)
    what = f"{outputs} outputs" if config.top_k is None else f"the likeliest {config.top_k} of {outputs:,} words and their rest"
    where = f"{tokens:,} tokens in {len(rows):,} rows" if per_token else f"{len(rows):,} rows"
    return f"keeps {what} for {where} in {config.dtype}", layout.bytes_for(tokens, len(rows))


@dataclass(frozen=True)
class CacheReport:
    """What lies in a folder, after every byte of it was compared with its manifest.

    Attributes:
        folder: as it was named.
        rows: written so far, and ``of`` how many.
        bytes: of the files.
        layout: of a row.
        key: what the answers were written for.
        fault: the first file that is not whole; None where all are.
    """

    folder: str
    rows: int
    of: int
    bytes: int
    layout: dict[str, Any]
    key: dict[str, str]
    fault: str | None

    @property
    def is_good(self) -> bool:
        """Whether a training can read it."""
        return self.fault is None and self.rows == self.of

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {**vars(self), "complete": self.is_good}

    def rich(self) -> Table:
        """Rows for the terminal."""
        table = Table(show_header=False, box=None)
        layout, shown = self.layout, f"{self.bytes / 1e6:,.2f} MB in {self.layout['dtype']}"
        kept = (
            f"{layout['outputs']:,} outputs" if layout["top_k"] is None else f"{layout['top_k']} of {layout['outputs']:,} words"
        )
        rest = (
            f", the rest at temperature {', '.join(f'{t:g}' for t in layout['temperatures'])}" if layout["temperatures"] else ""
        )
        table.add_row("folder", without_home(self.folder))
        table.add_row("rows", f"{self.rows:,} of {self.of:,}")
        table.add_row("holds", f"{kept} a {'token' if layout['per_token'] else 'row'}{rest}")
        table.add_row("size", shown)
        for name, value in self.key.items():
            table.add_row(name, value if len(value) <= 20 else f"{value[:16]}...")
        table.add_row("state", self.fault or ("whole" if self.is_good else "not complete: run the same recipe to go on"))
        return table


def inspect_cache(folder: str | Path) -> CacheReport:
    """Read a cache, every byte and every row of it.

    Raises:
        ResourceError: there is none.
        IntegrityError: its manifest is damaged.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    if manifest is None:
        raise ResourceError(f"cache {without_home(str(folder))!r}: there is none. Write it with: hf-shrink cache RECIPE")
    fault = first_fault(path, manifest)
    if fault is None:
        fault = CachedTeacher(path, manifest).first_bad_row()
    size = sum(shard.bytes for shard in manifest.shards)
    layout = json.loads(json.dumps(vars(manifest.layout)))
    return CacheReport(str(folder), manifest.rows, manifest.layout.rows, size, layout, dict(manifest.key), fault)


def folder_of(reference: Path, overrides: Sequence[str] = ()) -> Path:
    """The folder of a cache: ``reference`` itself, or the one that a recipe file names.

    Raises:
        RecipeError: a recipe without a ``cache``, or overrides of a folder.
    """
    if reference.is_dir() or not reference.suffix:
        if overrides:
            raise RecipeError("--set changes a recipe, and a folder is named; leave it out.")
        return reference
    recipe = Recipe.from_yaml(reference, overrides=overrides)
    if recipe.cache is None:
        raise RecipeError(f"{reference.name}: no `cache` section; name the folder of a cache, or add the section.")
    return Path(recipe.cache.folder)


def check_whole(report: CacheReport) -> None:
    """Raise IntegrityError where a training could not read what was reported about."""
    if not report.is_good:
        state = report.fault or f"{report.rows:,} of {report.of:,} rows"
        raise IntegrityError(f"cache {without_home(report.folder)!r}: {state}. Run hf-shrink cache RECIPE to write the rest.")
