"""A run that was stopped and resumed is the run that was not."""

import logging
import shutil

import pytest
from safetensors.torch import load_file

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.training.manifest import write_manifest
from tests.training.runs import history, model_for, same, trainer_for, weights

SAVING = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 10}


def full_run(family, task, folder, *, pruning=True, end_step=3, **words):
    """Distillation, pruning, dropout, accumulation and evaluation at once; 48 rows make 6 steps an epoch.

    Few weights are removed and the steps are long: without its mask a removed weight would outgrow others at once.
    """
    more = {
        "teacher": model_for(family, task, seed=5),
        "distillation": DistillationConfig(alpha=0.5, losses=(LossTerm(temperature=2.0),)),
    }
    if pruning:
        more["pruning"] = [PruningConfig(sparsity=0.05, begin_step=1, end_step=end_step, target_modules=target(family))]
    return trainer_for(family, task, folder, more=more, gradient_accumulation_steps=2, learning_rate=0.03, **SAVING | words)


def target(family):
    return ("mlp.c_fc",) if family == "gpt2" else ("intermediate.dense",)


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "lm")])
def test_resumed_from_each_checkpoint_everything_is_equal_bit_for_bit(family, task, tmp_path):
    """Without masks, optimizer or random state a resumed run ends with other weights and exit code 0."""
    whole = full_run(family, task, tmp_path / "whole", end_step=9)
    whole.train()
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == [f"checkpoint-{n}" for n in (10, 3, 6, 9)]
    for step in (3, 6, 9):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = full_run(family, task, folder, end_step=9)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 10
        assert same(weights(whole.model), weights(again.model))
        assert again.pruner.masks().keys() and same(whole.pruner.masks(), again.pruner.masks())
        assert history(again)[:-1] == history(whole)[:-1]
        files = [load_file(root / "checkpoint-10" / "pruning_masks.safetensors") for root in (tmp_path / "whole", folder)]
        assert same(*files)


def test_true_takes_the_newest_whole_checkpoint_and_says_what_it_passed_over(tmp_path, caplog):
    """The stock Trainer takes the newest folder, torn or not."""
    full_run("bert", "classification", tmp_path).train()
    (tmp_path / "checkpoint-10" / "scheduler.pt").unlink()
    with (tmp_path / "checkpoint-9" / "optimizer.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01")
    trainer = full_run("bert", "classification", tmp_path)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    text = caplog.text
    assert "checkpoint-10: scheduler.pt: missing; resuming from checkpoint-6" in text
    assert "checkpoint-9: optimizer.pt: sha256 differs; resuming from checkpoint-6" in text


def test_only_torn_checkpoints_are_an_error_that_lists_each(tmp_path):
    """Starting afresh in silence throws the work away; crashing on the newest hides the others."""
    full_run("bert", "classification", tmp_path, max_steps=6).train()
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").unlink()
    trainer = full_run("bert", "classification", tmp_path, max_steps=6)
    before = weights(trainer.model)
    with pytest.raises(IntegrityError) as error:
        trainer.train(resume_from_checkpoint=True)
    text = str(error.value)
    assert (
        error.value.code == 5 and "checkpoint-6: model.safetensors: missing; checkpoint-3: model.safetensors: missing" in text
    )
    assert str(tmp_path) not in text and text.count("\n") < 3 and same(before, weights(trainer.model))


def test_a_torn_checkpoint_asked_for_by_path_is_refused(tmp_path):
    """Whoever names a checkpoint means that one."""
    full_run("bert", "classification", tmp_path, max_steps=6).train()
    (tmp_path / "checkpoint-6" / "rng_state.pth").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"checkpoint-6 is not whole: rng_state\.pth: 0 bytes instead of"):
        full_run("bert", "classification", tmp_path, max_steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.parametrize("asked", [True, "nowhere/checkpoint-3"])
def test_nothing_to_resume_from_is_said(asked, tmp_path):
    """A resume that quietly starts at step 0 doubles the training."""
    with pytest.raises(RecipeError, match="resume_from_checkpoint"):
        full_run("bert", "classification", tmp_path).train(resume_from_checkpoint=asked)


def test_a_checkpoint_without_optimizer_is_not_resumed(tmp_path):
    """The stock Trainer goes on with fresh moments and another learning rate."""
    full_run("bert", "classification", tmp_path, max_steps=3, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-3" / "pruning_masks.safetensors").exists()
    with pytest.raises(IntegrityError, match="save_only_model"):
        full_run("bert", "classification", tmp_path, max_steps=6).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("first", [True, False])
def test_pruning_cannot_be_dropped_or_added_at_a_resume(first, tmp_path):
    """Without its masks every removed weight grows back."""
    full_run("bert", "classification", tmp_path, pruning=first, max_steps=3).train()
    with pytest.raises(MismatchError, match="pruning masks"):
        full_run("bert", "classification", tmp_path, pruning=not first, max_steps=6).train(resume_from_checkpoint=True)


def pruned_run(folder, **words):
    """A short training whose one entry is ``words``."""
    entry = {"target_modules": ("intermediate.dense",), "begin_step": 1, "end_step": 5} | words
    more = {"pruning": PruningConfig(**entry)}
    return trainer_for("bert", "classification", folder, more=more, max_steps=6, save_strategy="steps", save_steps=3)


@pytest.mark.parametrize(
    "other",
    [
        {"sparsity": 0.3},
        {"structure": "n_of_m", "sparsity": None, "pattern": (2, 4)},
        {"criterion": "random"},
        {"criterion": "taylor"},
        {"end_step": 4},
    ],
)
def test_a_checkpoint_is_not_resumed_with_another_pruning_section(other, tmp_path):
    """Masks only grow: 0.8 asked down to 0.3 ends at 0.8 as if it were final, and Fisher sums are read as Taylor's."""
    words = {"sparsity": 0.8, "criterion": "fisher"}
    pruned_run(tmp_path, **words).train()
    given = {key: value for key, value in (words | other).items() if value is not None}
    with pytest.raises(MismatchError, match=r"checkpoint-3 was pruned with pruning .*this run asks for"):
        pruned_run(tmp_path, **given).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_without_a_record_of_its_pruning_is_resumed_with_a_warning(tmp_path, caplog):
    """One from before there was a record is no reason to lose the training."""
    pruned_run(tmp_path, sparsity=0.8).train()
    folder = tmp_path / "checkpoint-3"
    (folder / "pruning.json").unlink()
    (folder / "checkpoint_manifest.json").unlink()
    write_manifest(folder, step=3, resumable=True)
    with caplog.at_level(logging.WARNING):
        pruned_run(tmp_path, sparsity=0.8).train(resume_from_checkpoint=str(folder))
    assert "checkpoint-3 is from before pruning.json: its pruning settings are not compared" in caplog.text
