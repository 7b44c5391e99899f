"""A masked language model in training. What these prevent: other hidden tokens after a resume, or for another number of
micro-batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import colour_texts, tiny_config, tiny_tokenizer
from tests.training.runs import arguments, gradient_norms, history, same, weights


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory):
    """Format and tokens of 24 short texts."""
    folder = tmp_path_factory.mktemp("texts")
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in colour_texts(24)["text"]))
    data = load_splits(DataConfig(dataset=str(folder), packing=False), "masked-lm")
    return data.format, tokenize(data, tiny_tokenizer(mask=True), 32)


def model(seed: int, *, dropout: float) -> BertForMaskedLM:
    torch.manual_seed(seed)
    words = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForMaskedLM(tiny_config("bert", vocab_size=len(tiny_tokenizer(mask=True)), **words))


def trainer(folder: Path, rows, *, dropout: float = 0.1, **words):
    form, tokens = rows
    tokenizer = tiny_tokenizer(mask=True)
    return ShrinkTrainer(
        model(0, dropout=dropout),
        arguments(folder, **{"per_device_train_batch_size": 4, "max_steps": 8} | words),
        form.collator(tokenizer),
        tokens.train,
        tokens.validation,
        tokenizer,
        teacher=model(5, dropout=dropout),
        distillation=DistillationConfig(losses=(LossTerm(),)),
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_within_an_epoch_and_between_two_everything_is_equal_bit_for_bit(workers, rows, tmp_path):
    """24 rows make 3 steps of 2 micro-batches of 4 an epoch: step 2 is within the first, step 3 ends it.

    Workers that stay alive are told the epoch, too; dropout after a resume is not theirs, so it is left out there.
    """
    words = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "dataloader_num_workers": workers}
    dropout = 0.0 if workers else 0.1
    words |= {"dataloader_persistent_workers": workers > 0}
    whole = trainer(tmp_path / "whole", rows, dropout=dropout, **words)
    whole.train()
    for step in (2, 3):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = trainer(folder, rows, dropout=dropout, **words)
        again.train(resume_from_checkpoint=True)
        assert same(weights(whole.model), weights(again.model)) and history(again)[:-1] == history(whole)[:-1]


def test_gradients_do_not_depend_on_the_number_of_micro_batches_and_epochs_differ(rows, tmp_path):
    found = []
    for batch, steps in ((12, 1), (4, 3)):
        run = trainer(
            tmp_path, rows, dropout=0.0, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, learning_rate=0.0
        )
        with gradient_norms(run) as norms:
            run.train()
        found.append(norms)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert len({round(norm, 6) for norm in found[0]}) == 8  # nothing is learnt: only the hidden tokens tell the epochs apart
