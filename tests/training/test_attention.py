"""Losses on attention in a Trainer: what it is switched to, when, and what is left of that."""

import pytest
from transformers import TrainerCallback

from hf_shrink.errors import MismatchError, RecipeError
from tests.training.runs import model_for, same, trainer_for, weights
from tests.training.test_losses import run


@pytest.mark.parametrize("name", ["attention_mse", "key_relation_kl"])
def test_attention_that_is_watched_trains_as_the_plain_one(name, tmp_path):
    """It is the plain attention but for rounding; a mask or a dropout that it forgets is another model."""
    student = model_for("bert", "classification", attn_implementation="eager")
    plain = trainer_for("bert", "classification", tmp_path, max_steps=3, model=student)
    plain.train()
    taught = run(name, tmp_path, alpha=1e-12, dropout=True, max_steps=3)
    taught.train()
    losses = [[e["loss"] for e in trainer.state.log_history if "loss" in e] for trainer in (plain, taught)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 3


@pytest.mark.parametrize("name", ["attention_mse", "value_relation_kl"])
def test_checkpoints_that_let_no_gradient_through_are_refused(name, tmp_path):
    """What ran without a gradient is compared and logged, and moves no weight."""
    words = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}, "max_steps": 1}
    with pytest.raises(RecipeError, match="teach nothing under reentrant") as error:
        run(name, tmp_path, **words)
    assert error.value.code == 2
    trainer = run(name, tmp_path, max_steps=1)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": True})
    before = weights(trainer.model)
    with pytest.raises(MismatchError, match=r"attention of layer [01] runs without a gradient") as error:
        trainer.train()
    assert error.value.code == 3 and same(before, weights(trainer.model))
    run("hidden_mse", tmp_path, **words).train()


def test_attention_is_switched_with_a_message(tmp_path, caplog):
    """Under the stock fast attention there are no probabilities: an empty tuple, and a loss of nothing."""
    with caplog.at_level("WARNING"):
        trainer = run("attention_kl", tmp_path, max_steps=1)
    assert sum("changes from sdpa attention" in message for message in caplog.messages) == 2
    trainer.train()
    assert trainer.state.log_history[0]["loss/attention_kl"] > 0


def test_attention_is_after_a_training_what_it_was_before(tmp_path):
    """A student that goes on with the plain attention answers slower for the rest of its life in memory."""
    trainer = run("attention_kl", tmp_path, max_steps=1)
    models = trainer.model, trainer.distiller.teacher.model
    for _ in range(2):  # and again
        trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader()))).backward()
        assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]
        trainer.train()
    assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]
    trainer.add_callback(_Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        raise KeyboardInterrupt


def test_dropout_inside_attention_does_not_reach_the_loss(tmp_path):
    """A dropped key has probability 0, and the divergence is infinite."""
    trainer = run("attention_kl", tmp_path, dropout=True, max_steps=4)
    trainer.train()
    assert all(entry["loss/attention_kl"] < 0.1 for entry in trainer.state.log_history if "loss" in entry)
