"""A student in training that learns from its own words."""

import math
import shutil

import pytest
import torch

from hf_shrink.distillation.config import DistillationConfig, LossTerm, OnPolicyConfig
from hf_shrink.distillation.positions import SAMPLED
from hf_shrink.errors import RecipeError
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

GREEDY = {"temperature": 1e-9, "max_new_tokens": 6}


def run(folder, *, family="llama", mix=0.5, alpha=1.0, on_policy=None, task="lm", **words):
    config = DistillationConfig(
        alpha=alpha,
        losses=(LossTerm(loss="jsd", beta=0.3),),
        on_policy=OnPolicyConfig(mix=mix, **on_policy or {"max_new_tokens": 6}),
    )
    more = {"teacher": model_for(family, task, seed=5, layers=3), "distillation": config}
    dropout = words.pop("dropout", False)
    return trainer_for(family, task, folder, more=more, dropout=dropout, **words)


def watched(trainer):
    """The batches of each optimizer step, in a list that fills up."""
    steps, inner = [], trainer.get_batch_samples

    def keep(*args):
        found = inner(*args)
        steps.append(found)
        return found

    trainer.get_batch_samples = keep
    return steps


def jensen_shannon(student, teacher, beta):
    """The definition in float64, one position after the other."""
    p, q = (row.double().softmax(-1) for row in (teacher, student))
    middle = beta * p + (1 - beta) * q
    return beta * (p * (p / middle).log()).sum(-1) + (1 - beta) * (q * (q / middle).log()).sum(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_sampled_positions_alone(family, tmp_path):
    """One position beside, and the teacher judges what the student was given."""
    trainer = run(tmp_path, family=family, mix=1.0, max_steps=1, learning_rate=0.0, gradient_accumulation_steps=2)
    steps = watched(trainer)
    trainer.train()
    total, count = 0.0, 0
    teacher, student = trainer.distiller.teacher.model, trainer.model.eval()
    for batch in steps[0][0]:
        assert batch[SAMPLED]
        words = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ours, theirs = student(**words).logits[:, :-1], teacher(**words).logits[:, :-1]
        kept = batch["labels"][:, 1:] != -100
        total += float(jensen_shannon(ours[kept], theirs[kept], 0.3).sum())
        count += int(kept.sum())
    assert count > 8 and history(trainer)[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_add_up(tmp_path):
    """Samples are of other lengths than what they replace: counts must be taken after."""
    found = []
    for batch, steps in ((14, 1), (4, 4)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2, "rows": 14}
        trainer = run(tmp_path, mix=1.0, on_policy=GREEDY, **words)
        with gradient_norms(trainer) as norms:
            trainer.train()
        found.append(norms)
    assert min(found[0]) > 1e-4 and found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("streams", [True, False])
def test_the_task_learns_from_given_rows_alone(streams, tmp_path):
    """Cross-entropy on its own words would teach a student to repeat itself."""
    trainer = run(
        tmp_path, alpha=0.5, max_steps=1, gradient_accumulation_steps=6, per_device_train_batch_size=2, learning_rate=0
    )
    steps = watched(trainer)
    if not streams:
        trainer.streams = lambda inputs: False
    with gradient_norms(trainer) as norms:
        trainer.train()
    batches, count = steps[0]
    given = [batch for batch in batches if SAMPLED not in batch]
    assert 0 < len(given) < 6 and int(count) == sum(int((b["labels"][:, 1:] != -100).sum()) for b in given)
    total = 0.0
    with torch.no_grad():
        for batch in given:
            words = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = trainer.model.eval()(**words).logits[:, :-1]
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            )
    log = history(trainer)[0]
    assert log["loss/task"] == pytest.approx(total / int(count), rel=1e-4)
    assert log["loss"] == pytest.approx(0.5 * log["loss/task"] + 0.5 * log["loss/jsd"], rel=1e-4)
    assert norms[0] > 0


def test_a_step_of_samples_alone_has_no_task_loss_and_is_a_number(tmp_path):
    """A mean over no label is none."""
    for streams in (True, False):
        trainer = run(tmp_path, mix=1.0, alpha=0.5, max_steps=2)
        if not streams:
            trainer.streams = lambda inputs: False
        trainer.train()
        logs = [entry for entry in history(trainer) if "loss" in entry]
        assert [entry["loss/task"] for entry in logs] == [0, 0] and all(math.isfinite(e["loss"]) for e in logs)
        assert logs[0]["loss"] == pytest.approx(0.5 * logs[0]["loss/jsd"], rel=1e-4)


def test_a_resumed_run_draws_the_same_samples(tmp_path):
    """A generator of its own would begin anew at a resume, the global one would disturb dropout."""
    words = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "dropout": True, "max_steps": 6}
    whole = run(tmp_path / "whole", family="gpt2", **words)
    steps = watched(whole)
    whole.train()
    assert {SAMPLED in batch for batches, _ in steps for batch in batches} == {True, False}
    for step in (2, 4):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = run(folder, family="gpt2", **words)
        again.train(resume_from_checkpoint=True)
        assert same(weights(whole.model), weights(again.model))
        assert history(again)[:-1] == history(whole)[:-1]


def test_models_that_continue_no_text_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="does not continue texts"):
        run(tmp_path, family="bert", task="classification")
