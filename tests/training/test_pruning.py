"""The pruner inside a training."""

import logging

import pytest
import torch
from transformers import TrainerCallback

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.schedules import SCHEDULES
from tests.loading.cuts import realign
from tests.training.runs import model_for, same, trainer_for, weights

FC = ("intermediate.dense",)


def entry(**words):
    return PruningConfig(**{"sparsity": 0.8, "begin_step": 1, "end_step": 5, "target_modules": FC} | words)


class Watcher(TrainerCallback):
    """Counts zeros in the pruned weights at every chance a user's callback has to look."""

    def __init__(self):
        self.at_begin = None
        self.after_update, self.at_step_end, self.at_evaluation = {}, {}, {}
        self.gradients = []

    def zeros(self, model):
        weight = model.bert.encoder.layer[0].intermediate.dense.weight
        return int((weight == 0).sum()) / weight.numel()

    def on_train_begin(self, args, state, control, model, **_):
        self.at_begin = self.zeros(model)

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        weight = model.bert.encoder.layer[0].intermediate.dense.weight
        self.gradients.append(bool((weight.grad[weight == 0] != 0).any()))

    def on_optimizer_step(self, args, state, control, model, **_):
        self.after_update[state.global_step + 1] = self.zeros(model)

    def on_step_end(self, args, state, control, model, **_):
        self.at_step_end[state.global_step] = self.zeros(model)

    def on_evaluate(self, args, state, control, model, **_):
        self.at_evaluation[state.global_step] = self.zeros(model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_after_n_steps_the_masks_are_those_of_the_schedule_at_n(accumulation, tmp_path):
    """Off by one, the last step never reaches the sparsity; a callback of the user that comes first sees dense weights."""
    watcher = Watcher()
    trainer = trainer_for(
        "bert",
        "classification",
        tmp_path,
        more={"pruning": entry(), "callbacks": [watcher]},
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    expected = {n: SCHEDULES["cubic"](n, begin_step=1, end_step=5, sparsity=0.8) for n in range(1, 7)}
    size = 64 * 32
    for seen in (watcher.after_update, watcher.at_step_end, watcher.at_evaluation):
        assert {n: round(share * size) for n, share in seen.items()} == {n: round(v * size) for n, v in expected.items()}
    assert watcher.at_begin == 0 and not any(watcher.gradients)


def test_a_constant_schedule_is_in_force_before_the_first_step(tmp_path):
    """Otherwise the first step, and an evaluation at the start, run on the dense model."""
    watcher = Watcher()
    more = {"pruning": entry(schedule="constant", begin_step=0), "callbacks": [watcher]}
    trainer_for("bert", "classification", tmp_path, more=more).train()
    assert watcher.at_begin == pytest.approx(0.8, abs=1e-3)


def test_a_schedule_longer_than_the_training_is_refused_before_the_first_step(tmp_path):
    """It would stop half way and be carded as the full sparsity."""
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry(end_step=5000)})
    before = weights(trainer.model)
    with pytest.raises(RecipeError, match=r"end_step 5000 > 6 steps; would stop at sparsity 0\.00, not 0\.80"):
        trainer.train()
    assert same(before, weights(trainer.model)) and trainer.state.global_step == 0


def test_the_best_checkpoint_is_not_one_from_before_the_final_sparsity(tmp_path):
    """The densest checkpoint is the best one by accuracy: pruning would be undone at the end."""
    losses = iter(range(100))  # grows: the first evaluation is the best of all
    trainer = trainer_for(
        "bert",
        "classification",
        tmp_path,
        more={"pruning": entry(end_step=4), "compute_metrics": lambda _: {"cost": float(next(losses))}},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="cost",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_global_step == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert all("_staging" not in state.read_text() for state in tmp_path.glob("checkpoint-*/trainer_state.json"))
    weight = trainer.model.bert.encoder.layer[0].intermediate.dense.weight
    assert int((weight == 0).sum()) == round(0.8 * weight.numel())


def test_shrink_gives_a_smaller_model_with_the_same_outputs(tmp_path):
    """Zeros that stay in the file save nothing; cutting other neurons than the masked ones changes the outputs."""
    config = PruningConfig(structure="ffn", sparsity=0.5, end_step=4)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": [config]})
    trainer.train()
    small = trainer.shrink()
    batch = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        large = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(small.eval()(**batch).logits, large, atol=1e-5, rtol=1e-5)
    assert small.config.intermediate_size == 32 and small.num_parameters() < trainer.model.num_parameters()


def test_shrink_without_masks_is_refused(tmp_path):
    """A copy of the same size would pass for a smaller one."""
    for more in ({}, {"pruning": entry()}):
        with pytest.raises(RecipeError, match="no masks"):
            trainer_for("bert", "classification", tmp_path, more=more).shrink()


def test_a_second_train_starts_with_new_masks(tmp_path):
    """Two pruners on one model fight over its weights."""
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": entry()})
    trainer.train()
    trainer.train()
    from hf_shrink.training.callbacks import PruningCallback

    ours = [type(callback) for callback in trainer.callback_handler.callbacks].index(PruningCallback)
    assert sum(isinstance(c, PruningCallback) for c in trainer.callback_handler.callbacks) == 1 and ours == 0


def test_pruning_a_model_with_adapters_is_refused(tmp_path):
    """The base weights are frozen and hidden under adapters: nothing would get smaller."""
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    with pytest.raises(RecipeError, match="adapters"):
        trainer_for("bert", "classification", tmp_path, more={"pruning": entry(), "peft_config": lora})
    assert model_for("bert", "classification") is not None


def test_a_shrunk_model_with_layers_of_different_widths_saves_itself(tmp_path):
    """Its weights fit no stock config: without a record the folder would not load again."""
    from transformers import AutoModelForSequenceClassification

    config = PruningConfig(structure="ffn", sparsity=0.5, end_step=2, target_modules=["layer.0.intermediate.dense"])
    trainer = trainer_for("bert", "classification", tmp_path / "run", more={"pruning": config}, max_steps=2)
    trainer.train()
    small = trainer.shrink().eval()
    widths = [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer]
    assert widths == [32, 64] and not hasattr(trainer.model.config, "quantization_config")
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    realign(again)
    batch = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(small(**batch).logits, again(**batch).logits)


def test_shrink_says_where_the_schedule_has_not_ended(tmp_path, caplog):
    """Stopped early, 41 of 64 neurons stay where 32 were asked for, a width that no kernel likes."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    asked = PruningConfig(structure="ffn", sparsity=0.5, begin_step=1, end_step=5)
    trainer = trainer_for("bert", "classification", tmp_path, more={"pruning": asked, "callbacks": [Stop()]})
    trainer.train()
    with caplog.at_level(logging.WARNING):
        assert trainer.shrink().config.intermediate_size > 32
    assert "the schedule has not ended at step 3: removed are pruning.0 4" in caplog.text
    caplog.clear()
    whole = trainer_for("bert", "classification", tmp_path, more={"pruning": asked})
    whole.train()
    assert whole.shrink().config.intermediate_size == 32 and "schedule" not in caplog.text


@pytest.mark.parametrize("criterion", ["taylor", "activation_norm"])
def test_a_model_that_is_cut_while_it_trains_records_nothing(criterion, tmp_path):
    """With the recorder's hooks in the copy its first training step fails; taken off the model, it would record no more."""
    copies = []

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            copies.append(trainer.shrink())

        on_substep_end = on_step_end

    def run(*callbacks):
        asked = PruningConfig(structure="ffn", criterion=criterion, sparsity=0.5, begin_step=1, end_step=5)
        more = {"pruning": asked, "callbacks": list(callbacks)}
        return trainer_for("bert", "classification", tmp_path, more=more, gradient_accumulation_steps=2)

    trainer = run(Cut())
    trainer.train()
    plain = run()
    plain.train()
    for copy in (copies[3], copies[-1]):
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in copy.modules())
        copy.train()(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1])).loss.backward()
    found, expected = (t.pruner.recorder.state_dict() for t in (trainer, plain))
    assert same(found, expected) and same(weights(trainer.model), weights(plain.model))
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())


def test_eight_bit_moments_of_removed_weights_are_zero(tmp_path):
    """bitsandbytes keeps places in a table: place 0 says almost minus the largest moment of the block, not zero."""
    pytest.importorskip("bitsandbytes")
    asked = entry(target_modules=("query",), end_step=2)
    model = model_for("bert", "classification", hidden=64)
    trainer = trainer_for("bert", "classification", tmp_path, model=model, more={"pruning": asked}, optim="adamw_bnb_8bit")
    trainer.train()
    weight = trainer.model.bert.encoder.layer[0].attention.self.query.weight
    state = trainer.optimizer.optimizer.state[weight]
    assert state["state1"].dtype == torch.uint8 and bool((weight == 0).any())
    for number in (1, 2):
        moments = state[f"qmap{number}"][state[f"state{number}"].long()]
        assert not bool(moments[weight == 0].any()) and bool(moments.any())
