"""Criteria that read gradients and activations, inside a training."""

import shutil

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, T5ForConditionalGeneration

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PenaltyConfig, PruningConfig
from hf_shrink.pruning.criteria import CRITERIA
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import tiny_config, tiny_tokenizer
from tests.training.runs import arguments, model_for, same, trainer_for, weights

NEEDING = sorted(name for name, c in CRITERIA.items() if c.needs or c.unit_needs)
FOR_UNITS = sorted(name for name, c in CRITERIA.items() if c.unit is not None or c.function is not None)


def gone(model, structure: str) -> int:
    """Units that are zero in the first layer."""
    layer = model.bert.encoder.layer[0]
    rows = layer.intermediate.dense.weight if structure == "ffn" else layer.attention.self.value.weight.view(4, -1)
    return int((rows == 0).all(dim=1).sum())


@pytest.mark.parametrize("criterion", FOR_UNITS)
@pytest.mark.parametrize(("structure", "by_hand"), [("ffn", 32), ("heads", 2)])
def test_every_criterion_removes_units_while_it_trains(criterion, structure, by_hand, tmp_path):
    """A criterion that never records anything, or records it once, would prune by nothing."""
    entry = PruningConfig(structure=structure, criterion=criterion, sparsity=0.5, begin_step=1, end_step=4)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    assert gone(trainer.student, structure) == by_hand
    small = trainer.shrink()
    assert small.num_parameters() < trainer.student.num_parameters()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.student.modules())


@pytest.mark.parametrize("criterion", NEEDING)
def test_a_resumed_run_with_statistics_is_equal_bit_for_bit(criterion, tmp_path):
    """Statistics that start again at a resume prune something else than the run that went through."""
    structure = "ffn" if CRITERIA[criterion].unit is not None else "unstructured"
    entry = PruningConfig(structure=structure, criterion=criterion, sparsity=0.5, begin_step=1, end_step=6)
    words = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    whole = trainer_for("bert", "classification", tmp_path / "a", more={"pruning": entry}, **words)
    whole.train()
    shutil.rmtree(tmp_path / "a" / "checkpoint-6")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = trainer_for("bert", "classification", tmp_path / "b", more={"pruning": entry}, **words)
    again.train(resume_from_checkpoint=True)
    assert same(weights(whole.student), weights(again.student))
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_an_evaluation_in_between_changes_no_score(tmp_path):
    """Activations of evaluation texts in the statistics: the test data would decide what is pruned."""
    entry = PruningConfig(structure="ffn", criterion="activation_norm", sparsity=0.5, begin_step=1, end_step=5)
    ends = []
    for words in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        folder = tmp_path / str(len(ends))
        trainer = trainer_for("bert", "classification", folder, more={"pruning": entry}, dropout=False, **words)
        trainer.train()
        ends.append(weights(trainer.student))
    assert same(*ends)


def test_pruning_at_step_zero_by_what_nobody_has_seen_is_refused(tmp_path):
    entry = PruningConfig(structure="ffn", criterion="taylor", sparsity=0.5, schedule="constant")
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    with pytest.raises(RecipeError, match=r"pruning\.0\.begin_step: criterion taylor needs steps to record"):
        trainer.train()


def test_a_function_of_the_user_is_a_criterion(tmp_path):
    """By hand: scores that fall with the input's index keep the first half of every row."""
    entry = PruningConfig(
        criterion=lambda weight, stats: -torch.arange(weight.shape[1]).float().expand_as(weight),
        sparsity=0.5,
        end_step=3,
        target_modules=["query"],
    )
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    zeros = (trainer.student.bert.encoder.layer[0].attention.self.query.weight == 0).float().mean(dim=0)
    assert zeros.tolist() == [0.0] * 16 + [1.0] * 16


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_penalty_adds_the_same_gradient_however_a_step_is_cut(accumulation, tmp_path):
    """Added to each micro-batch it would be as many times as large."""
    entry = PruningConfig(sparsity=0.0, penalty=PenaltyConfig(kind="l1", weight=0.01), target_modules=["query"])
    found = []
    for pruning in (None, entry):
        trainer = trainer_for(
            "bert",
            "classification",
            tmp_path / str(pruning is None),
            more={"pruning": pruning},
            dropout=False,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
        )
        before = model_for("bert", "classification", dropout=False).bert.encoder.layer[0].attention.self.query.weight
        trainer.train()
        after = trainer.student.bert.encoder.layer[0].attention.self.query.weight
        found.append((before - after).detach())
    torch.testing.assert_close(found[1] - found[0], 0.01 * before.detach().sign(), atol=2e-6, rtol=0)


def test_moments_of_removed_weights_are_zero(tmp_path):
    """Momentum of a weight that is gone pulls it back in the very next step of a training that goes on without masks."""
    entry = PruningConfig(sparsity=0.5, end_step=3, target_modules=["query"])
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    weight = trainer.student.bert.encoder.layer[0].attention.self.query.weight
    state = trainer.optimizer.state[weight]
    assert {"exp_avg", "exp_avg_sq"} <= state.keys()
    for name in ("exp_avg", "exp_avg_sq"):
        assert not state[name][weight == 0].any() and state[name][weight != 0].any()


@pytest.mark.parametrize("structure", ["ffn", "heads"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_optimizer_goes_on_with_the_smaller_model(family, structure, tmp_path):
    """The same step on the masked and on the shrunk model: moments of other rows would move the weights elsewhere."""
    entry = PruningConfig(structure=structure, sparsity=0.5, end_step=3)
    trainer = trainer_for(family, "classification", tmp_path, more={"pruning": entry}, dropout=False, weight_decay=0.01)
    trainer.train()
    small = trainer.shrink().eval()
    optimizer = trainer.carried_optimizer(small)
    large, batch = trainer.student.eval(), trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    for model, stepper in ((large, trainer.optimizer.optimizer), (small, optimizer)):
        stepper.zero_grad()
        model(**batch).loss.backward()
        if model is large:
            trainer.pruner.mask_gradients()
        stepper.step()
    trainer.pruner.apply()
    expected = trainer.shrink()
    names = [name for name, _ in small.named_parameters()]
    assert any(p.numel() for p in small.parameters()) and len(names) > 10
    for name in names:
        torch.testing.assert_close(small.get_parameter(name), expected.get_parameter(name), atol=1e-6, rtol=1e-4)


def test_an_optimizer_without_one_number_a_weight_is_refused(tmp_path):
    entry = PruningConfig(structure="ffn", sparsity=0.5, end_step=3)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry}, optim="adafactor")
    trainer.train()
    with pytest.raises(ValueError, match="not one number a weight; start a new optimizer"):
        trainer.carried_optimizer(trainer.shrink())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (PruningConfig(structure="layers", sparsity=0.5), "layers is no mask that a training could follow"),
        (PruningConfig(structure="vocabulary", min_count=1), "vocabulary is no mask that a training could follow"),
        (PruningConfig(structure="ffn", sparsity=0.5, reconstruct=True), "reconstruct changes weights once, before training"),
        (PruningConfig(sparsity=0.5, allocation="sensitivity"), "sensitivity needs pruning_fractions="),
    ],
)
def test_what_a_training_cannot_do_is_refused(entry, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        trainer_for("bert", "classification", tmp_path, more={"pruning": entry})


def test_masks_that_compete_end_at_the_total(tmp_path):
    """``global`` shares the total out by score; each layer keeps a multiple of eight and at least one."""
    entry = PruningConfig(structure="ffn", sparsity=0.75, allocation="global", end_step=4)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    kept = [int(mask.sum()) for mask in trainer.pruner.masks().values()]
    assert sum(kept) == 32 and all(width % 8 == 0 and width for width in kept)


def test_two_of_four_is_exact_in_every_four_and_nested(tmp_path):
    """By hand: 2 of every 4 neighbouring inputs of every row stay, and what has gone does not come back on the way."""
    entry = PruningConfig(structure="n_of_m", pattern=[2, 4], end_step=4)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    for name, mask in trainer.pruner.masks().items():
        assert (mask.view(-1, 4).sum(dim=1) == 2).all(), name
        weight = trainer.student.get_submodule(name).weight
        assert not weight[~mask].any() and weight[mask].any()


def test_blocks_leave_whole(tmp_path):
    entry = PruningConfig(structure="block", block=[4, 8], sparsity=0.5, end_step=4, target_modules=["intermediate.dense"])
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry})
    trainer.train()
    weight = trainer.student.bert.encoder.layer[0].intermediate.dense.weight
    blocks = weight.view(16, 4, 4, 8).permute(0, 2, 1, 3).reshape(64, 32)
    assert sorted(set((blocks != 0).sum(dim=1).tolist())) == [0, 32] and int((blocks == 0).all(dim=1).sum()) == 32


@pytest.mark.parametrize(("unit", "limit"), [("absolute", 0.02), ("std", 1.0)])
def test_a_threshold_removes_what_is_below_it(unit, limit, tmp_path):
    """Every weight that stays is above the threshold at the last change; the file says so, not the schedule."""
    entry = PruningConfig(threshold=limit, threshold_in=unit, end_step=6, target_modules=["query"])
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry}, learning_rate=1e-3)
    trainer.train()
    weight = trainer.student.bert.encoder.layer[0].attention.self.query.weight
    kept = weight[weight != 0].abs().min()
    assert 0.1 < float((weight == 0).float().mean()) < 0.95
    assert kept > (limit if unit == "absolute" else 0.5 * float(weight.std()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_that_the_trainer_smooths_are_still_those_of_the_statistics(smoothing, tmp_path):
    """It takes them out of the batch: padding of a decoder would count as text, and information about labels have none."""
    rows = [{"input_ids": [5, 6, 3], "labels": [5, 3]}, {"input_ids": [5, 6, 7, 3], "labels": [5, 6, 7, 8, 9, 10, 3]}] * 4
    model = T5ForConditionalGeneration(tiny_config("t5"))
    entry = PruningConfig(structure="ffn", criterion="activation_norm", sparsity=0.5, begin_step=1)
    words = arguments(tmp_path, max_steps=2, label_smoothing_factor=smoothing)
    collator = DataCollatorForSeq2Seq(tiny_tokenizer(), model=model)
    trainer = ShrinkTrainer(model, words, collator, Dataset.from_list(rows), pruning=entry)
    trainer.train()
    counts = {name: int(v) for name, v in trainer.pruner.recorder.state_dict().items() if name.endswith("token_count")}
    assert {n.split(".")[0]: c for n, c in counts.items()} == {"encoder": 4 * (3 + 4), "decoder": 4 * (2 + 7)}
    entry = PruningConfig(structure="ffn", criterion="mutual_information", sparsity=0.5, begin_step=1)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry}, label_smoothing_factor=smoothing)
    trainer.train()
    assert gone(trainer.student, "ffn") == 32
