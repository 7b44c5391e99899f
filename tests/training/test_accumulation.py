"""How an optimizer step is cut into micro-batches changes nothing."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, default_data_collator

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import tiny_config
from tests.training.runs import NO_DROPOUT, TASKS, arguments, gradient_norms, model_for, trainer_for

DISTIL = DistillationConfig(alpha=0.4, losses=[LossTerm(temperature=2.0), LossTerm(loss="reverse_kl", weight=0.5)])


def norms_and_logs(family, task, folder, *, batch, steps, distil, rows=16, **words):
    more = {"teacher": model_for(family, task, seed=5), "distillation": DISTIL} if distil else {}
    words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2} | words
    trainer = trainer_for(family, task, folder, rows=rows, more=more, dropout=False, **words)
    with gradient_norms(trainer) as norms:
        trainer.train()
    return norms, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("family", "task"), TASKS)
@pytest.mark.parametrize("distil", [False, True], ids=["plain", "taught"])
def test_gradient_norm_and_loss_do_not_depend_on_the_number_of_micro_batches(family, task, distil, tmp_path):
    """The stock Trainer multiplies the gradient of classification heads by the number of accumulation steps."""
    whole, losses = norms_and_logs(family, task, tmp_path, batch=16, steps=1, distil=distil, rows=32)
    assert len(whole) == 2 and min(whole) > 1e-3
    for steps in (2, 4, 8):
        parts, again = norms_and_logs(family, task, tmp_path, batch=16 // steps, steps=steps, distil=distil, rows=32)
        assert parts == pytest.approx(whole, rel=1e-4)
        assert again == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("distil", [False, True], ids=["plain", "taught"])
@pytest.mark.parametrize("task", ["classification", "lm"])
def test_a_ragged_last_micro_batch_weighs_what_it_holds(task, distil, tmp_path):
    """A mean of means gives the samples of a short micro-batch too much weight."""
    whole, losses = norms_and_logs("gpt2", task, tmp_path, batch=14, steps=1, distil=distil, rows=14)
    parts, again = norms_and_logs("gpt2", task, tmp_path, batch=4, steps=4, distil=distil, rows=14)
    assert parts == pytest.approx(whole, rel=1e-4) and again == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("words", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothing asked for"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_ragged_micro_batch_of_questions_weighs_what_it_holds(alpha, words, tmp_path):
    """Such a batch has places in place of labels, which the stock Trainer does not count; one answer lies behind its text."""
    rows = [{"input_ids": row, "attention_mask": [1] * 6} for row in torch.randint(4, 20, (8, 6)).tolist()]
    data = Dataset.from_list([row | {"start_positions": i % 5, "end_positions": 4 + i % 2} for i, row in enumerate(rows)])
    data = data.map(lambda row, i: {"start_positions": 6, "end_positions": 6} if i == 1 else row, with_indices=True)
    distillation = DistillationConfig(alpha=alpha, losses=[LossTerm()])
    found = []
    for batch, steps in ((8, 1), (5, 2), (3, 3)):
        student, teacher = (asked_model(seed) for seed in (0, 1))
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
        args = arguments(tmp_path, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, **sizes, **words)
        trainer = ShrinkTrainer(
            student, args, default_data_collator, data, teacher=teacher, distillation=distillation, processing_class=None
        )
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    moved = found[0] - torch.cat([p.detach().flatten() for p in asked_model(0).parameters()])
    assert moved.norm() > 0.1
    for other in found[1:]:
        assert float((other - found[0]).norm() / moved.norm()) < 1e-4


def asked_model(seed):
    """A BERT that finds answers, without dropout."""
    torch.manual_seed(seed)
    return AutoModelForQuestionAnswering.from_config(tiny_config("bert", **NO_DROPOUT["bert"]))


def test_label_smoothing_accumulates_too(tmp_path):
    """Smoothing takes the labels away from the model; the share of a micro-batch must still be known."""
    whole, _ = norms_and_logs("bert", "classification", tmp_path, batch=16, steps=1, distil=True, label_smoothing_factor=0.1)
    parts, _ = norms_and_logs("bert", "classification", tmp_path, batch=4, steps=4, distil=True, label_smoothing_factor=0.1)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_loss_function_of_the_user_gets_the_count_and_is_trusted(tmp_path):
    """Rescaling a loss that divides by the count already would shrink the gradient."""

    def summed(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    norms = []
    for batch, steps in ((16, 1), (4, 4)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer = trainer_for(
            "bert", "classification", tmp_path, rows=16, more={"compute_loss_func": summed}, dropout=False, **words
        )
        with gradient_norms(trainer) as seen:
            trainer.train()
        norms.append(seen)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
