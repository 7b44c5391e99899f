"""Progressive distillation inside a training."""

import shutil

import pytest
import torch

from hf_shrink.distillation.config import DistillationConfig, LossTerm, ProgressiveConfig
from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.training.config import OptimizationConfig
from hf_shrink.training.depths import depths_of
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights
from tests.training.test_optimizers import Rates

HIDDEN = LossTerm(loss="hidden_mse", weight=2.0)


def run(folder, *, family="bert", task="classification", progressive=None, losses=None, more=None, teacher=None, **words):
    """Two layers learn from four, of another width, in stages of two steps; then both from everything."""
    stages = progressive or ProgressiveConfig(order="layer_by_layer", steps_per_layer=2)
    config = DistillationConfig(alpha=0.5, losses=losses or (LossTerm(), HIDDEN), progressive=stages)
    teacher = teacher or model_for(family, task, seed=5, layers=4, hidden=16)
    more = {"teacher": teacher, "distillation": config} | (more or {})
    return trainer_for(family, task, folder, more=more, max_steps=7, dropout=words.pop("dropout", False), **words)


@pytest.mark.parametrize("steps", [1, 2])
def test_each_stage_changes_its_layers_alone(steps, tmp_path):
    """A weight that decays, or that another term still pulls at, is not at rest."""
    trainer = run(tmp_path, weight_decay=0.5, gradient_accumulation_steps=steps)
    depths, seen, states = depths_of(trainer.model, "x"), Rates(), []
    seen.on_step_end = lambda args, state, control, model=None, **_: states.append(weights(model))
    trainer.add_callback(seen)
    states.append(weights(trainer.model))
    trainer.train()
    for step in range(7):
        allowed = (0, 1) if step < 2 else (2,) if step < 4 else (0, 1, 2, 3)
        changed = {name for name, value in states[step + 1].items() if not torch.equal(value, states[step][name])}
        assert changed and {depths[name] for name in changed} == set(allowed), step
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_the_loss_of_a_stage_is_its_terms_and_then_the_usual_mix(tmp_path):
    """The task's loss left in would train what the stage is not about."""
    trainer = run(tmp_path)
    trainer.train()
    logs = [entry for entry in history(trainer) if "loss" in entry]
    for entry in logs[:4]:
        assert "loss/forward_kl" not in entry
        assert entry["loss"] == pytest.approx(0.5 * 2.0 * entry["loss/hidden_mse"], rel=1e-4)
    for entry in logs[4:]:
        mixed = entry["loss/forward_kl"] + 2.0 * entry["loss/hidden_mse"]
        assert entry["loss"] == pytest.approx(0.5 * entry["loss/task"] + 0.5 * mixed, rel=1e-4)


def test_projections_learn_in_their_stage_and_keep_their_weights_in_others(tmp_path):
    """A projection with momentum left over would move while its layer rests."""
    trainer, states = run(tmp_path), []
    seen = Rates()
    maps = trainer.distiller.layers.projections
    seen.on_step_end = lambda *_, **__: states.append(weights(maps))
    states.append(weights(maps))
    trainer.add_callback(seen)
    trainer.train()
    names = sorted(states[0])
    moved = [[not torch.equal(states[i + 1][name], states[i][name]) for name in names] for i in range(7)]
    assert moved == [[True, False]] * 2 + [[False, True]] * 2 + [[True, True]] * 3


def test_micro_batches_add_up_in_every_stage(tmp_path):
    """Clipping and projections are part of it: the norm is that of the student, before it is clipped."""
    found = []
    for batch, steps in ((14, 1), (4, 4)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_grad_norm": 0.002}
        trainer = run(tmp_path, family="llama", task="lm", rows=14, optim="sgd", learning_rate=5.0, **words)
        with gradient_norms(trainer) as norms:
            trainer.train()
        found.append(norms)
    assert len(found[0]) == 7 and min(found[0]) > 0.002
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("how", ["progressive", "unfreeze", "schedule and rates"])
def test_a_resumed_run_is_equal_bit_for_bit(how, tmp_path):
    """Who learns must follow from the step alone: a counter starts anew at a resume."""
    saving = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "dropout": True}

    def make(folder):
        if how == "progressive":
            return run(folder, **saving)
        optimization = (
            OptimizationConfig(unfreeze_every=2)
            if how == "unfreeze"
            else OptimizationConfig(layer_decay=0.5, schedule={"every": 2})
        )
        return trainer_for("bert", "classification", folder, more={"optimization": optimization}, max_steps=7, **saving)

    whole = make(tmp_path / "whole")
    whole.train()
    for step in (1, 3, 5):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = make(folder)
        again.train(resume_from_checkpoint=True)
        assert same(weights(whole.model), weights(again.model)), step
        assert history(again)[:-1] == history(whole)[:-1]


def test_masks_hold_while_layers_rest_and_wake(tmp_path):
    """A layer that wakes with old momentum would bring removed weights back."""
    pruning = PruningConfig(sparsity=0.5, begin_step=1, end_step=3, target_modules=("intermediate.dense",))
    trainer = run(tmp_path, more={"pruning": pruning})
    trainer.train()
    masks = trainer.pruner.masks()
    assert masks and all(not trainer.model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"progressive": ProgressiveConfig(steps_per_layer=4)}, "2 stages take 8 steps, but the training ends after 7"),
        ({"more": {"optimization": OptimizationConfig(unfreeze_every=1)}}, "says who learns when; remove one"),
        ({"more": {"optimization": OptimizationConfig(freeze=("layer.1",))}}, "in stage 1 nothing can learn"),
        (
            {"more": {"pruning": PruningConfig(sparsity=0.5, criterion="movement", begin_step=1)}},
            "movement|reads gradients, which layers at rest",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(words, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        run(tmp_path, **words).train()
