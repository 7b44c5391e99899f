"""A tiny project on disk: a base model with its tokenizer, a data set in CSV files, and recipes cut down to them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertForMaskedLM, T5ForConditionalGeneration

from hf_shrink import Recipe
from hf_shrink.files import files_below, sha256
from tests.tiny import (
    COLOURS,
    VOCABULARY,
    colour_texts,
    tiny_causal_lm,
    tiny_classifier,
    tiny_config,
    tiny_lm_tokenizer,
    tiny_tokenizer,
)

UNUSED = 12
"""Words of the base model that no text has, for recipes that cut the vocabulary."""


LABELS = {
    "token-classification": lambda words: {
        "tokens": words,
        "tags": [f"B-{word.upper()}" if word in COLOURS else "O" for word in words],
    },
    "multi-label-classification": lambda words: {
        "text": " ".join(words),
        "label": sorted({*words} & {*COLOURS, "house"}),
    },
    "text-regression": lambda words: {"text": " ".join(words), "label": float(words.count("red") - words.count("blue"))},
}
"""By task with labels other than classes: a row made of the words of a text."""


def make_project(folder: Path, *, layers: int = 6) -> Path:
    """``folder`` with ``base/`` (a headless BERT of 64 hidden units) and ``data/{train,validation,test}.csv``; returned."""
    base = tiny_classifier(layers=layers, hidden=64, ffn=128, vocab_size=len(VOCABULARY) + UNUSED).base_model
    base.save_pretrained(folder / "base")
    tiny_tokenizer(unused=UNUSED).save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for seed, (split, rows) in enumerate({"train": 64, "validation": 16, "test": 24}.items()):
        data = colour_texts(rows, seed=seed)
        named = data.remove_columns("label").add_column("label", [COLOURS[i] for i in data["label"]])
        named.to_csv(folder / "data" / f"{split}.csv")
    return folder


def make_lm_project(folder: Path, family: str = "llama", *, layers: int = 3) -> Path:
    """``folder`` with ``base/``, a language model without a padding token, and ``data/{train,validation,test}/N.txt``."""
    tiny_causal_lm(family, layers=layers, hidden=64, ffn=128, pad_token_id=None).save_pretrained(folder / "base")
    tiny_lm_tokenizer().save_pretrained(folder / "base")
    for seed, (split, rows) in enumerate({"train": 40, "validation": 8, "test": 16}.items()):
        (folder / "data" / split).mkdir(parents=True)
        for i, text in enumerate(colour_texts(rows, seed=seed)["text"]):
            (folder / "data" / split / f"{i}.txt").write_text(text)
    return folder


def make_masked_project(folder: Path, *, layers: int = 3) -> Path:
    """``folder`` with ``base/``, a BERT for hidden tokens, and ``data/{split}.jsonl`` of one sentence around one word."""
    tokenizer = tiny_tokenizer(unused=UNUSED, mask=True)
    torch.manual_seed(0)
    config = tiny_config("bert", layers=layers, hidden=64, ffn=128, vocab_size=len(tokenizer))
    BertForMaskedLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_rows(folder / "data", lambda words: {"text": f"the {words[0]} of the {words[0]} door"})
    return folder


def make_answers_project(folder: Path, *, layers: int = 3) -> Path:
    """``folder`` with ``base/``, headless, and ``data/{split}.jsonl``: the question is for the colour in the context."""
    tiny_classifier(layers=layers, hidden=64, ffn=128).base_model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")

    def ask(words: list[str]) -> dict:
        context, colour = " ".join(words), next(word for word in words if word in COLOURS)
        return {
            "question": "the song",
            "context": context,
            "answers": {"text": [colour], "answer_start": [context.index(colour)]},
        }

    write_rows(folder / "data", ask)
    return folder


def make_pairs_project(folder: Path, *, layers: int = 4) -> Path:
    """``folder`` with ``base/``, headless, and ``data/{split}.jsonl``: two texts and the share of words they have in common.

    Its layers have large weights, so that leaving some out changes a text's vector.
    """
    tiny_classifier(layers=layers, hidden=64, ffn=128, initializer_range=0.15).base_model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")

    def pair(words: list[str]) -> dict:
        other = [*words[::2], *words[:1]]
        return {"text": " ".join(words), "other": " ".join(other), "alike": len({*other}) / len({*words})}

    write_rows(folder / "data", pair)
    return folder


def make_labelled_project(folder: Path, task: str, *, layers: int = 3) -> Path:
    """``folder`` with ``base/``, headless, and ``data/{split}.jsonl`` with labels for a ``task`` of ``LABELS``."""
    tiny_classifier(layers=layers, hidden=64, ffn=128, vocab_size=len(VOCABULARY) + UNUSED).base_model.save_pretrained(
        folder / "base"
    )
    tiny_tokenizer(unused=UNUSED).save_pretrained(folder / "base")
    write_rows(folder / "data", LABELS[task])
    return folder


def make_targets_project(folder: Path, *, layers: int = 2) -> Path:
    """``folder`` with ``base/``, a T5, and ``data/{split}.jsonl``: to be written are ``lamp`` and the colour in the text."""
    torch.manual_seed(0)
    config = tiny_config("t5", layers=layers, hidden=64, ffn=128, vocab_size=len(VOCABULARY) + UNUSED)
    T5ForConditionalGeneration(config).save_pretrained(folder / "base")
    tiny_tokenizer(unused=UNUSED).save_pretrained(folder / "base")

    def ask(words: list[str]) -> dict:
        colour = next(word for word in words if word in COLOURS)
        return {"text": " ".join(word for word in words if word != "lamp"), "target": f"lamp {colour}"}

    write_rows(folder / "data", ask)
    return folder


def write_rows(folder: Path, make: Callable[[list[str]], dict], *, train: int = 128) -> None:
    """``{train,validation,test}.jsonl``: what ``make`` makes of the words of each of ``colour_texts``."""
    folder.mkdir(parents=True)
    for seed, (split, rows) in enumerate({"train": train, "validation": 16, "test": 32}.items()):
        lines = [json.dumps(make(text.split())) for text in colour_texts(rows, seed=seed)["text"]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


def project_for(recipe: Recipe, folder: Path) -> Path:
    """The tiny project that a shipped recipe can run on."""
    if recipe.task == "causal-lm":
        return make_lm_project(folder, layers=16)
    if recipe.task == "masked-lm":
        return make_masked_project(folder, layers=6)
    if recipe.task == "question-answering":
        return make_answers_project(folder, layers=6)
    if recipe.task == "sentence-embedding":
        return make_pairs_project(folder, layers=6)
    if recipe.task == "seq2seq":
        return make_targets_project(folder, layers=6)
    if recipe.task in LABELS:
        return make_labelled_project(folder, recipe.task, layers=6)
    return make_project(folder)


def overrides_for(recipe: Recipe, project: Path) -> list[str]:
    """``tiny_overrides`` for a shipped recipe: what it does not have stays away."""
    words = tiny_overrides(project, gradual=bool(recipe.pruning) and recipe.pruning[0].when == "during")
    trained = recipe.teacher is not None and recipe.teacher.training is not None
    words = [word for word in words if recipe.teacher is not None or not word.startswith("teacher.")]
    words += ["data.doc_stride=4"] if recipe.task == "question-answering" else []
    return [word for word in words if trained or not word.startswith("teacher.training=")]


def tiny_overrides(project: Path, *, memory: bool = False, gradual: bool = True) -> list[str]:
    """``--set`` values that turn any recipe with a teacher into one of two steps on the tiny project.

    Args:
        project: where it is, as the run will see it: absolute, or ``Path()`` for the current folder.
        memory: whether peak memory is measured, which costs a process for each model.
        gradual: whether the recipe's first pruning entry follows a schedule.
    """
    base, training = f"{project}/base", "{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true}"
    return [
        f"model={base}",
        f"teacher.model={base}",
        f"teacher.training={training}",
        f"training={training}",
        f"data={{dataset: {project}/data, max_length: 32}}",
        "measurement.batch_sizes=[1, 2]",
        "measurement.length=16",
        "measurement.runs=3",
        "measurement.bootstrap=100",
        "measurement.threads=1",
        f"measurement.memory={str(memory).lower()}",
        *(["pruning.0.begin_step=0", "pruning.0.end_step=2"] if gradual else []),
    ]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files_below(folder)}


def quickstart(*overrides: str) -> Recipe:
    """The recipe of the current folder's finished project."""
    return Recipe.from_yaml(Path("recipes/quickstart.yaml"), overrides=overrides)
