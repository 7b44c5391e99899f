"""Every loss of the table inside a training: laws that hold whatever it compares."""

import copy
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.losses import ATTENTION_READS, LOSSES
from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

CLASSIFIES = sorted(name for name, loss in LOSSES.items() if "classes" in loss.outputs)
ON_LAYERS = sorted(name for name, loss in LOSSES.items() if loss.reads != "logits")
names = pytest.mark.parametrize("name", CLASSIFIES)


@cache
def dense(family, task, **config):
    """A teacher of four layers."""
    return model_for(family, task, seed=5, layers=4, dropout=False, **config)


def run(name, folder, *, family="bert", task="classification", teacher=None, alpha=0.7, term=None, **words):
    config = DistillationConfig(alpha=alpha, losses=(LossTerm(loss=name, **term or {}),))
    more = {"teacher": copy.deepcopy(teacher or dense(family, task)), "distillation": config}
    return trainer_for(family, task, folder, more=more, dropout=words.pop("dropout", False), **words)


@names
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "lm")])
def test_gradient_and_loss_do_not_depend_on_the_number_of_micro_batches(name, family, task, tmp_path):
    """Rows are ragged: a mean over the tokens of a micro-batch weighs a short one too much."""
    found = []
    for batch, steps in ((14, 1), (4, 4)):
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2, "rows": 14}
        trainer = run(name, tmp_path, family=family, task=task, **words)
        with gradient_norms(trainer) as norms:
            trainer.train()
        found.append((norms, [e[f"loss/{name}"] for e in trainer.state.log_history if "loss" in e]))
    assert min(found[0][0]) > 1e-4 and min(found[0][1]) > 0
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4) and found[1][1] == pytest.approx(found[0][1], rel=1e-4)


@names
def test_the_loss_is_the_formula_and_its_term_has_its_name(name, tmp_path):
    """A term logged under another name, or on another scale, hides what stopped falling."""
    trainer = run(name, tmp_path, max_steps=2)
    trainer.train()
    for entry in (e for e in history(trainer) if "loss" in e):
        assert entry["loss"] == pytest.approx(0.3 * entry["loss/task"] + 0.7 * entry[f"loss/{name}"], rel=1e-4)


@names
def test_alpha_zero_is_plain_training_bit_for_bit(name, tmp_path):
    """A projection drawn from the global generator, or attention that is watched, must not make another run."""
    plain = trainer_for("bert", "classification", tmp_path, max_steps=3)
    plain.train()
    taught = run(name, tmp_path, alpha=0.0, teacher=dense("bert", "classification", hidden=16), dropout=True, max_steps=3)
    taught.train()
    assert (f"loss/{name}" in taught.state.log_history[0]) == (LOSSES[name].reads not in ATTENTION_READS)
    assert same(weights(plain.model), weights(taught.model))


@pytest.mark.parametrize("name", sorted(set(CLASSIFIES) - {"soft_cross_entropy"}))
@pytest.mark.parametrize(("family", "task"), [("distilbert", "classification"), ("gpt2", "lm")])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name, family, task, tmp_path):
    """A loss that reads the wrong layer, row or position is not zero here."""
    student = model_for(family, task, dropout=False)
    trainer = run(
        name, tmp_path, family=family, task=task, model=student, teacher=student, alpha=1.0, learning_rate=0.0, max_steps=1
    )
    with gradient_norms(trainer) as norms:
        trainer.train()
    assert norms[0] < 2e-5 and abs(trainer.state.log_history[0]["loss"]) < 1e-5


@names
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "lm")])
def test_what_is_written_in_padding_does_not_matter(name, family, task, tmp_path):
    """Padding that counts teaches the student to be like its teacher about nothing."""
    found = []
    for filler in (0, 9):
        trainer = run(name, tmp_path, family=family, task=task, max_steps=1)
        inner = trainer.data_collator
        trainer.data_collator = lambda rows, inner=inner, filler=filler: _filled(inner(rows), filler)
        trainer.train()
        found.append((trainer.state.log_history[0]["loss"], weights(trainer.model)))
    assert found[0][0] == found[1][0]
    changed = {key for key in found[0][1] if not torch.equal(found[0][1][key], found[1][1][key])}
    assert not changed


def _filled(batch, filler):
    padding = batch["attention_mask"] == 0
    assert padding.any()
    return batch | {"input_ids": batch["input_ids"].masked_fill(padding, filler)}


@names
def test_the_student_comes_closer(name, tmp_path):
    """A gradient that does not arrive leaves the curve flat, and nothing says so."""
    teacher = dense("bert", "classification", hidden=32)
    trainer = run(name, tmp_path, alpha=1.0, teacher=teacher, max_steps=8)
    trainer.train()
    terms = [e[f"loss/{name}"] for e in trainer.state.log_history if f"loss/{name}" in e]
    assert len(terms) == 8 and sum(terms[-3:]) < (0.9999 if name == "soft_cross_entropy" else 0.98) * sum(terms[:3])


@pytest.mark.parametrize("name", sorted(name for name in ON_LAYERS if LOSSES[name].reads in ("hidden", "embeddings")))
def test_projections_learn_with_the_student_and_stay_out_of_it(name, tmp_path):
    """A map that is not in the optimizer compares with noise for ever; one inside the student cannot be loaded again."""
    trainer = run(
        name,
        tmp_path,
        teacher=dense("bert", "classification", hidden=16),
        alpha=1.0,
        max_steps=6,
        save_strategy="steps",
        save_steps=6,
    )
    maps = trainer.distiller.layers.projections
    before = weights(maps)
    trainer.train()
    terms = [e[f"loss/{name}"] for e in trainer.state.log_history if f"loss/{name}" in e]
    after = weights(maps)
    assert before and not any(torch.equal(before[key], after[key]) for key in before) and terms[-1] < 0.9 * terms[0]
    folder = tmp_path / "checkpoint-6"
    assert load_file(folder / "model.safetensors").keys() == trainer.model.state_dict().keys()
    assert same(load_file(folder / "distillation_projections.safetensors"), after)


@pytest.mark.parametrize("name", ["hidden_mse", "attention_kl", "value_relation_kl"])
@pytest.mark.parametrize("words", [{"gradient_checkpointing": True}, {"bf16": True}], ids=["checkpointing", "bf16"])
def test_losses_on_layers_keep_their_value_under(name, words, tmp_path):
    """What runs again for its gradient must not be seen a second time."""
    norms = []
    for more in ({}, words):
        trainer = run(name, tmp_path, alpha=1.0, max_steps=2, **more)
        with gradient_norms(trainer) as seen:
            trainer.train()
        norms.append(seen)
    assert min(norms[0]) > 1e-5
    assert norms[1] == pytest.approx(norms[0], rel=0.1 if "bf16" in words else 1e-4)


def test_a_resumed_run_is_equal_bit_for_bit(tmp_path):
    """Projections begun anew resume with exit code 0 and another student."""
    words = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "teacher": dense("bert", "classification", hidden=16)}
    whole = run("hidden_mse", tmp_path / "whole", dropout=True, **words)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = run("hidden_mse", tmp_path / "again", dropout=True, **words)
    again.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(again.model))
    assert same(weights(whole.distiller.layers.projections), weights(again.distiller.layers.projections))
    plain = run("forward_kl", tmp_path / "again", dropout=True, **words)
    with pytest.raises(MismatchError, match="holds projections"):
        plain.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-3"))


def test_an_optimizer_of_the_user_that_would_leave_projections_out_is_refused(tmp_path):
    """The map from one width to the other would stay random."""
    student = model_for("bert", "classification")
    more = {"optimizers": (torch.optim.AdamW(student.parameters()), None)}
    teacher = dense("bert", "classification", hidden=16)
    config = DistillationConfig(losses=(LossTerm(loss="hidden_mse"),))
    trainer = trainer_for(
        "bert", "classification", tmp_path, model=student, more=more | {"teacher": teacher, "distillation": config}
    )
    with pytest.raises(RecipeError, match="optimizers"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("hidden_mse", None, ((0, 1), (1, 3))),
        ("hidden_mse", "last", ((1, 3),)),
        ("hidden_mse", [[0, 0], [0, 2]], ((0, 0), (0, 2))),
        ("value_relation_kl", None, ((1, 3),)),
        ("attention_kl", "uniform", ((0, 1), (1, 3))),
    ],
)
def test_layers_are_compared_as_asked(name, layers, expected, tmp_path):
    """The last layer taught by the first: a loss that falls, and a student that gets worse."""
    trainer = run(name, tmp_path, term={} if layers is None else {"layers": layers})
    assert trainer.distiller.layers.pairs[name] == expected


@pytest.mark.parametrize("pair", [[2, 0], [0, 4]])
def test_a_layer_that_is_not_there_is_refused_before_anything_runs(pair, tmp_path):
    """An index error in the first step says nothing about layers."""
    with pytest.raises(
        MismatchError, match=rf"layers \[{pair[0]}, {pair[1]}\].*student has layers 0..1, the teacher 0..3"
    ) as error:
        run("hidden_mse", tmp_path, term={"layers": [pair]})
    assert error.value.code == 3


def test_other_head_counts_are_refused_by_attention_losses_and_fine_for_relations(tmp_path):
    """Heads of another number broadcast, or fail with a shape."""
    teacher = _two_heads()
    with pytest.raises(MismatchError, match=r"4 heads, layer 1 of the teacher 2\.\nUse value_relation_kl"):
        run("attention_kl", tmp_path, teacher=teacher).train()
    for name in ("query_relation_kl", "key_relation_kl", "value_relation_kl"):
        trainer = run(name, tmp_path, teacher=teacher, max_steps=1)
        trainer.train()
        assert trainer.state.log_history[0][f"loss/{name}"] > 0


def _two_heads():
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(dense("bert", "classification").config)
    config.num_attention_heads = 2
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("name", ["hidden_mse", "value_relation_kl"])
def test_a_teacher_that_is_not_finite_inside_is_named_by_row_and_changes_nothing(name, tmp_path):
    """Logits may be finite where a layer is not."""
    teacher = copy.deepcopy(dense("bert", "classification"))
    trainer = run(name, tmp_path, teacher=teacher)
    token = int(next(iter(trainer.get_train_dataloader()))["input_ids"][2, 1])
    with torch.no_grad():
        trainer.distiller.teacher.model.bert.embeddings.word_embeddings.weight[token] = float("nan")
    before = weights(trainer.model)
    with pytest.raises(NonFiniteError, match=r"step 1: teacher layers: NaN or infinity in batch rows [\d, ]*2"):
        trainer.train()
    assert same(before, weights(trainer.model))


def test_weights_temperatures_and_alpha_move_in_a_straight_line(tmp_path):
    """A schedule read from the wrong counter reaches its end early, or never."""
    term = {"temperature": 1.0, "temperature_end": 3.0, "weight": 1.0, "weight_end": 0.0}
    trainer = run("forward_kl", tmp_path, max_steps=5, term=term, learning_rate=0.0)
    trainer.distiller.config = DistillationConfig(alpha=0.0, alpha_end=1.0, losses=trainer.distiller.config.losses)
    trainer.train()
    entries = [entry for entry in history(trainer) if "loss" in entry]
    assert len(entries) == 5
    for step, entry in enumerate(entries):
        alpha, weight = step / 4, 1 - step / 4
        expected = (1 - alpha) * entry["loss/task"] + alpha * weight * entry["loss/forward_kl"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
