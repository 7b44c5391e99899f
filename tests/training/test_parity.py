"""Without a teacher and pruning, ShrinkTrainer is the stock Trainer."""

import inspect

import pytest
from transformers import Trainer

from hf_shrink.training.trainer import ShrinkTrainer
from tests.training.runs import TASKS, history, same, trainer_for, weights


@pytest.mark.parametrize(("family", "task"), TASKS)
@pytest.mark.parametrize("words", [{}, {"label_smoothing_factor": 0.1, "max_grad_norm": 0.0}], ids=["plain", "smoothed"])
def test_weights_log_and_evaluation_equal_the_stock_trainer(family, task, words, tmp_path):
    """A hook that draws a random number, or touches the loss, changes every result without an error."""
    runs = []
    for kind in (Trainer, ShrinkTrainer):
        folder = tmp_path / kind.__name__
        trainer = trainer_for(
            family, task, folder, kind=kind, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3, **words
        )
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        assert not same(before, after)
        runs.append((after, history(trainer)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] and any("eval_loss" in entry for entry in runs[1][1])


def test_every_argument_of_the_stock_trainer_in_its_order():
    """Code written for Trainer passes arguments by position."""
    stock, ours = (list(inspect.signature(kind.__init__).parameters.values()) for kind in (Trainer, ShrinkTrainer))
    assert [p.name for p in ours[: len(stock)]] == [p.name for p in stock]
    assert [p.default for p in ours[: len(stock)]] == [p.default for p in stock]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(stock) :]) and len(ours) > len(stock)
