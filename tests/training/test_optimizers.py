"""What ``training`` and ``optimization`` say about the learning rate, and who learns with it."""

import math

import pytest
import torch
from transformers import Adafactor, Seq2SeqTrainingArguments, TrainerCallback

from hf_shrink.errors import RecipeError
from hf_shrink.training.arguments import check_optimizer, training_arguments
from hf_shrink.training.config import OptimizationConfig, StepDecay, WeightPenalty
from hf_shrink.training.depths import depths_of, unfrozen
from hf_shrink.training.schedules import falling
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import FAMILIES, tiny_classifier, tiny_config
from tests.training.runs import arguments, gradient_norms, model_for, same, trainer_for, weights

LR = 5e-3
WEIGHTS = ("query", "key", "value", "dense", "embeddings", "classifier")


class Rates(TrainerCallback):
    """The learning rate of the first group at each update, and which weights have a gradient there."""

    def __init__(self):
        self.rates, self.learning = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.learning.append({name for name, p in model.named_parameters() if p.grad is not None})


def trained(folder, *, family="bert", task="classification", model=None, more=None, **words):
    seen = Rates()
    trainer = trainer_for(family, task, folder, model=model, more=more or {}, learning_rate=LR, **words)
    trainer.add_callback(seen)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize(
    ("words", "kind", "settings"),
    [
        ({"optim": "sgd"}, torch.optim.SGD, {"momentum": 0}),
        ({"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"optim": "adamw_torch", "adam_beta1": 0.8, "weight_decay": 0.1}, torch.optim.AdamW, {"betas": (0.8, 0.999)}),
        ({"optim": "adamw_torch_fused"}, torch.optim.AdamW, {"fused": True}),
        ({"optim": "adagrad", "optim_args": "lr_decay=0.1"}, torch.optim.Adagrad, {"lr_decay": 0.1}),
        ({"optim": "adafactor"}, Adafactor, {"relative_step": False}),
        ({"optim": "rmsprop", "optim_args": "alpha=0.9,momentum=0.5"}, torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.5}),
    ],
    ids=lambda value: value.get("optim_args", value.get("optim")) if isinstance(value, dict) else None,
)
def test_each_optimizer_gets_its_words_and_changes_the_weights(words, kind, settings, tmp_path):
    """An argument that is parsed and dropped trains another run with exit code 0."""
    model = model_for("bert", "classification")
    before = weights(model)
    trainer, seen = trained(tmp_path, model=model, max_steps=2, lr_scheduler_type="constant", **words)
    inner = trainer.optimizer.optimizer
    assert type(inner) is kind and {key: inner.param_groups[0][key] for key in settings} == settings
    assert inner.param_groups[0]["weight_decay"] == words.get("weight_decay", 0.0)
    assert seen.rates == [LR, LR] and not same(before, weights(model))


SCHEDULES = [
    ("linear", {}, lambda t: 1 - t / 6),
    ("cosine", {}, lambda t: 0.5 * (1 + math.cos(math.pi * t / 6))),
    ("cosine_with_restarts", {"num_cycles": 2}, lambda t: 0.5 * (1 + math.cos(math.pi * (t / 3 % 1)))),
    ("polynomial", {"power": 2.0, "lr_end": 0.0}, lambda t: (1 - t / 6) ** 2),
    ("constant", {}, lambda t: 1),
]


@pytest.mark.parametrize(("name", "words", "rate"), SCHEDULES, ids=[name for name, *_ in SCHEDULES])
def test_each_schedule_has_the_rates_worked_out_by_hand(name, words, rate, tmp_path):
    _, seen = trained(tmp_path, optim="sgd", lr_scheduler_type=name, lr_scheduler_kwargs=words or None)
    assert seen.rates == pytest.approx([LR * rate(t) for t in range(6)], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1]),
        ("inverse_sqrt", [0, 0.5, 1, (2 / 3) ** 0.5, 0.5**0.5, (2 / 5) ** 0.5]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_warm_up_rises_in_a_straight_line(name, rates, tmp_path):
    _, seen = trained(tmp_path, optim="sgd", lr_scheduler_type=name, warmup_steps=2)
    assert seen.rates == pytest.approx([LR * rate for rate in rates], abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        (StepDecay(every=2, factor=0.5), 0, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (StepDecay(at=(1, 4)), 0, [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (StepDecay(at=(4,), factor=0.5), 2, [0, 0.5, 1, 1, 0.5, 0.5]),
    ],
    ids=["step", "multi-step", "after a warm-up"],
)
def test_step_schedules_fall_where_they_say(schedule, warmup, rates, tmp_path):
    more = {"optimization": OptimizationConfig(schedule=schedule)}
    _, seen = trained(tmp_path, optim="sgd", warmup_steps=warmup, more=more)
    assert seen.rates == pytest.approx([LR * rate for rate in rates], abs=1e-12)
    assert [falling(t, config=schedule, warmup=warmup) for t in range(6)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"optim": "sgdd"}, "sgdd"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "[Nn]esterov"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "much"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "cycles"),
    ],
)
def test_what_torch_or_transformers_would_refuse_later_is_told_at_once(words, says, tmp_path):
    """Found at the first step of the student, after hours with the teacher."""
    with pytest.raises((RecipeError, ValueError), match=says):
        check_optimizer(arguments(tmp_path, **words), 6, "training")


def test_kernels_that_are_not_installed_are_told_by_the_plan(tmp_path, monkeypatch):
    """transformers raises an ImportError of its own, when the teacher has been trained."""
    monkeypatch.setattr("hf_shrink.training.arguments.is_liger_kernel_available", lambda: False)
    with pytest.raises(RecipeError, match=r"training\.use_liger_kernel: needs the package liger-kernel"):
        training_arguments({"use_liger_kernel": True}, output_dir=tmp_path, seed=0, where="training")


def test_generating_while_evaluating_is_refused_at_once(tmp_path):
    """Ignored, compute_metrics would get logits where it expects the tokens of answers."""
    words = {"output_dir": str(tmp_path), "predict_with_generate": True, "use_cpu": True, "report_to": []}
    with pytest.raises(RecipeError, match=r"(?s)predict_with_generate: would be ignored.*Seq2SeqTrainer"):
        ShrinkTrainer(model_for("bert", "classification"), Seq2SeqTrainingArguments(**words))


@pytest.mark.parametrize("family", [*FAMILIES, "electra", "gpt_neox", "vit"])
def test_depths_rise_from_the_embeddings_to_the_head(family):
    """Electra's projection behind its embeddings, or a final norm, would learn with the wrong rate."""
    model = tiny_classifier(family, layers=3)
    depths = depths_of(model, "x")
    assert list(depths) == [name for name, _ in model.named_parameters()]
    below = {name for name in depths if "embed" in name or ".wte" in name or ".wpe" in name}
    assert below and below == {name for name, depth in depths.items() if depth == 0}
    for name, depth in depths.items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        assert depth in (0, 4) if not numbers else depth == numbers[0] + 1
    assert {0, 1, 2, 3, 4} == set(depths.values())


def test_layer_decay_gives_each_depth_its_rate_and_logs_that_of_the_head(tmp_path):
    more = {"optimization": OptimizationConfig(layer_decay=0.5)}
    trainer, seen = trained(tmp_path, more=more, max_steps=2, lr_scheduler_type="constant", weight_decay=0.1)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert rates["classifier.weight"] == rates["bert.pooler.dense.bias"] == LR
    assert rates["bert.encoder.layer.1.output.dense.weight"] == LR / 2
    assert rates["bert.encoder.layer.0.output.LayerNorm.bias"] == LR / 4
    assert rates["bert.embeddings.word_embeddings.weight"] == LR / 8
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["classifier.weight"] == 0.1 and decays["classifier.bias"] == 0.0
    assert rates.keys() == dict(trainer.model.named_parameters()).keys() and seen.rates == [LR, LR]
    assert [e["learning_rate"] for e in trainer.state.log_history if "loss" in e] == [LR, LR]


def test_one_step_of_sgd_with_layer_decay_moves_each_weight_by_its_part(tmp_path):
    """Rates that stand in the groups but are overwritten by the scheduler move every weight alike."""
    moved = []
    for config in (None, OptimizationConfig(layer_decay=0.5)):
        model = model_for("bert", "classification", dropout=False)
        before = weights(model)
        trained(tmp_path, model=model, more={"optimization": config}, max_steps=1, optim="sgd")
        moved.append({name: value - before[name] for name, value in weights(model).items()})
    for name, part in (("classifier.weight", 1), ("bert.encoder.layer.0.output.dense.weight", 1 / 4)):
        torch.testing.assert_close(moved[1][name], moved[0][name] * part, rtol=1e-3, atol=1e-8)
        assert moved[0][name].abs().max() > 1e-6


def test_unfreezing_is_a_function_of_the_step():
    depths = [list(unfrozen(step, every=2, layers=2)) for step in range(8)]
    assert depths == [[3], [3], [2, 3], [2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_gradual_unfreezing_lets_one_layer_more_learn_every_so_many_steps(tmp_path):
    """A layer that rests but decays, or keeps its momentum, is not at rest."""
    model = model_for("bert", "classification")
    before = weights(model)
    more = {"optimization": OptimizationConfig(unfreeze_every=2, freeze=("position_embeddings",))}
    words = {"weight_decay": 0.5, "gradient_accumulation_steps": 2}
    _, seen = trained(tmp_path, model=model, more=more, max_steps=7, **words)
    depths = depths_of(model, "x")
    frozen = "bert.embeddings.position_embeddings.weight"
    for step, learning in enumerate(seen.learning):
        allowed = unfrozen(step, every=2, layers=2)
        assert learning == {name for name, depth in depths.items() if depth in allowed and name != frozen}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {frozen}
    short = {"optimization": OptimizationConfig(unfreeze_every=2, freeze=("embeddings", "layer.0"))}
    model = model_for("bert", "classification")
    model.load_state_dict(before)
    trained(tmp_path, model=model, more=short, max_steps=3, **words)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name, depth in depths.items() if depth >= 2}


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_penalty_adds_its_formula_however_the_step_is_cut(kind, tmp_path):
    """One that is added to each micro-batch grows with their number."""
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        model = model_for("bert", "classification", dropout=False)
        learnt = [p.detach() for n, p in model.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
        size = float(sum(p.abs().sum() if kind == "l1" else p.square().sum() / 2 for p in learnt))
        more = {"optimization": OptimizationConfig(penalty=WeightPenalty(kind=kind, weight=0.01))}
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
        losses = []
        for each in ({}, more):
            copy = model_for("bert", "classification", dropout=False)
            trainer = trainer_for("bert", "classification", tmp_path, model=copy, more=each, **words)
            with gradient_norms(trainer) as norms:
                trainer.train()
            losses.append(trainer.state.log_history[0]["loss"])
        assert losses[1] - losses[0] == pytest.approx(0.01 * size, rel=1e-3)
        found.append(norms[0])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_penalty_waits_until_something_that_it_counts_learns(tmp_path):
    """Above GPT-2's layers there is a norm alone: a sum over no weights would stop the first step."""
    found = []
    for penalty in (None, WeightPenalty(kind="l2", weight=0.01)):
        model = model_for("gpt2", "lm", dropout=False)
        more = {"optimization": OptimizationConfig(unfreeze_every=1, penalty=penalty)}
        trainer = trainer_for("gpt2", "lm", tmp_path, model=model, more=more, max_steps=4, learning_rate=0.0)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    plain, counted = found
    assert counted[0] == plain[0] and all(more > less for more, less in zip(counted[1:], plain[1:], strict=True))


@pytest.mark.parametrize(
    ("config", "more", "says"),
    [
        ({"unfreeze_every": 3}, {}, "learn from step 9 on, but the training ends after 6"),
        ({"unfreeze_every": 1, "freeze": ("classifier", "pooler")}, {}, "nothing above the layers can learn"),
        ({"schedule": {"every": 6}}, {}, "step 6 never comes"),
        ({"schedule": {"every": 2}}, {"lr_scheduler_type": "cosine"}, "another schedule"),
        (
            {
                "freeze": WEIGHTS,
                "penalty": WeightPenalty(kind="l2", weight=0.1),
            },
            {},
            "only biases and norms are left to learn",
        ),
        ({"freeze": ("bert", "classifier")}, {}, "none of the model's weights asks for a gradient"),
    ],
)
def test_what_would_have_no_effect_is_refused(config, more, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        trainer_for("bert", "classification", tmp_path, more={"optimization": OptimizationConfig(**config)}, **more).train()


def test_two_stacks_have_no_one_depth():
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(tiny_config("t5"))
    with pytest.raises(RecipeError, match="has two"):
        depths_of(model, "optimization.layer_decay")
