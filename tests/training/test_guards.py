"""What stops a training before it does harm."""

import collections
import errno

import pytest
import torch
from transformers import TrainerCallback

from hf_shrink import DistillationConfig, LossTerm, PruningConfig, prune
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import NonFiniteError, RecipeError, ResourceError
from hf_shrink.training import space
from tests.tiny import tiny_inputs
from tests.training.runs import model_for, same, trainer_for, weights


class Poison(TrainerCallback):
    """Makes the loss, or one gradient, a NaN or an infinity at step 4."""

    def __init__(self, model, what, value):
        self.what, self.value, self.step, self.weights = what, value, 0, None
        model.register_forward_hook(self.forward, always_call=True)
        next(model.parameters()).register_hook(self.backward)

    def on_step_begin(self, args, state, control, model, **_):
        self.step, self.weights = state.global_step + 1, weights(model)

    def forward(self, module, args, output):
        if self.step == 4 and self.what == "loss":
            output["loss"] = output["loss"] * self.value

    def backward(self, gradient):
        return gradient * self.value if self.step == 4 and self.what == "gradient" else gradient


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("words", [{}, {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}], ids=["clipped", "free"])
def test_a_step_that_is_no_number_stops_before_the_update(what, value, words, tmp_path):
    """The stock Trainer logs a loss of 0.0, makes every weight NaN and ends with exit code 0."""
    model = model_for("bert", "classification")
    poison = Poison(model, what, value)
    more = {"callbacks": [poison]}
    trainer = trainer_for(
        "bert", "classification", tmp_path, model=model, more=more, save_strategy="steps", save_steps=2, **words
    )
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    text = str(error.value)
    assert text.startswith(f"step 4: the {'loss' if what == 'loss' else 'gradient norm'} is ")
    assert "The last good checkpoint is checkpoint-2." in text and text.count("\n") < 3 and error.value.code == 3
    assert same(poison.weights, weights(model)) and all(value.isfinite().all() for value in weights(model).values())
    assert not any("loss" in entry and entry["step"] >= 4 for entry in trainer.state.log_history)


@pytest.mark.parametrize(
    ("family", "task", "loss", "words"),
    [
        ("bert", "classification", None, {}),
        ("bert", "classification", "forward_kl", {"label_smoothing_factor": 0.1}),
        ("gpt2", "lm", None, {}),
        ("gpt2", "lm", "hidden_mse", {}),
        ("llama", "lm", "forward_kl", {}),
    ],
)
def test_a_batch_without_one_label_counts_as_nothing(family, task, loss, words, tmp_path):
    """Its mean is NaN: the run would end, and say that the learning rate is too high."""
    config = DistillationConfig(losses=[LossTerm(loss=loss or "forward_kl")])
    more = {"teacher": model_for(family, task, seed=5), "distillation": config}
    trainer = trainer_for(family, task, tmp_path, more=more if loss else {}, max_steps=3, optim="sgd", **words)
    inner, batches = trainer.data_collator, []

    def second_is_ignored(rows):
        batches.append(inner(rows))
        labels = batches[-1]["labels"]
        return batches[-1] | {"labels": torch.full_like(labels, -100) if len(batches) == 2 else labels}

    trainer.data_collator = second_is_ignored
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3 and (logs[1]["loss"], logs[1]["grad_norm"]) == (0, 0)
    assert all(logs[i]["loss"] > 0 and logs[i]["grad_norm"] > 0 for i in (0, 2))
    assert all(value.isfinite().all() for value in weights(trainer.model).values())


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    """A name of a checkpoint that is not there costs an hour of looking for it."""
    model = model_for("bert", "classification")
    trainer = trainer_for(
        "bert", "classification", tmp_path, model=model, more={"callbacks": [Poison(model, "loss", float("nan"))]}
    )
    with pytest.raises(NonFiniteError, match=r"No checkpoint was saved yet\."):
        trainer.train()


def test_an_overflow_is_left_to_the_scaler_until_its_scale_is_not_to_blame(tmp_path):
    """Float16 training finds its scale by overflowing: stopping there would make it impossible."""
    trainer = trainer_for("bert", "classification", tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.accelerator.clip_grad_norm_ = lambda *_: torch.tensor(float("inf"))
    assert trainer._get_grad_norm(trainer.model).item() == float("inf")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        trainer._get_grad_norm(trainer.model)


Usage = collections.namedtuple("Usage", "total used free")


def test_too_little_disk_is_said_before_the_first_step(tmp_path, monkeypatch):
    """A full disk after the first night loses the night."""
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 300_000))
    trainer = trainer_for("bert", "classification", tmp_path / "run", save_strategy="steps", save_steps=1, save_total_limit=2)
    with pytest.raises(ResourceError, match=r"3 checkpoints: needs \d+ kB, 300 kB free on 'run'") as error:
        trainer.train()
    assert error.value.code == 4 and str(tmp_path) not in str(error.value) and trainer.state.global_step == 0
    trainer_for("bert", "classification", tmp_path / "run", save_strategy="no").train()


def test_the_estimate_is_the_size_of_a_real_checkpoint(tmp_path):
    """An estimate that forgets the optimizer lets two thirds of the runs through that cannot end well."""
    trainer = trainer_for("bert", "classification", tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    estimate = space.checkpoint_bytes(trainer.model, adapters=False, with_optimizer=True)
    trainer.train()
    big = {"model.safetensors", "optimizer.pt"}
    real = sum(path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir() if path.name in big)
    assert real == pytest.approx(estimate, rel=0.2)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "steps", "save_steps": 2}, 3),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}, 1),
        ({"save_strategy": "epoch", "num_train_epochs": 4, "max_steps": -1}, 4),
    ],
)
def test_as_many_checkpoints_are_expected_as_a_run_leaves(words, kept, tmp_path):
    """Counting one where there will be twenty asks the disk the wrong question."""
    trainer = trainer_for("bert", "classification", tmp_path, rows=8, **words)
    trainer.train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == kept
    assert space.checkpoints_kept(trainer.args, max_steps=trainer.state.max_steps, save_steps=trainer.state.save_steps) == kept


def test_a_disk_that_fills_up_while_saving_is_named_and_leaves_the_older_checkpoint(tmp_path):
    """Half a checkpoint under its final name is taken for a whole one."""
    trainer = trainer_for("bert", "classification", tmp_path, save_strategy="steps", save_steps=2)
    inner = trainer._save_rng_state

    def full(folder):
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(folder)

    trainer._save_rng_state = full
    with pytest.raises(ResourceError, match=r"checkpoint-4 could not be written: No space left on device\.\n.*checkpoint-2\."):
        trainer.train()
    again = trainer_for("bert", "classification", tmp_path, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("made", ["itself", "pruned", "taught by it"])
def test_a_model_that_has_taught_is_refused_as_a_student_until_it_is_let_go(made, tmp_path):
    """It stays frozen, and so does what is pruned from it: training would end in words of torch's."""
    teacher = model_for("bert", "classification", seed=5)
    Teacher(teacher)
    student = teacher if made == "itself" else prune(teacher, PruningConfig(structure="ffn", sparsity=0.5))
    more = {"teacher": teacher, "distillation": DistillationConfig(losses=(LossTerm(),))} if made == "taught by it" else None
    trainer = trainer_for("bert", "classification", tmp_path, model=student, more=more, max_steps=1)
    before = weights(student)
    says = r"training: none of the model's weights .*has taught stays frozen.*\n.*requires_grad_"
    with pytest.raises(RecipeError, match=says) as error:
        trainer.train()
    assert error.value.code == 2 and same(before, weights(student))
    student.requires_grad_(True)
    trainer.train()
    assert not same(before, weights(student))


def test_scores_by_gradients_of_a_frozen_model_are_refused():
    """The backward pass of a calibration has nothing to go to."""
    teacher = Teacher(model_for("bert", "classification", seed=5)).model
    batch = tiny_inputs("bert") | {"labels": torch.tensor([0, 1])}
    with pytest.raises(RecipeError, match="calibration: none of the model's weights"):
        prune(teacher, PruningConfig(structure="ffn", criterion="taylor", sparsity=0.5), [batch])
