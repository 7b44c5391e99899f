"""Language models whose logits are never all there train as those whose logits are."""

import copy
import json
from functools import partial

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, MixtralConfig

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import NonFiniteError
from hf_shrink.training.taught import TaughtTrainer
from tests.tiny import VOCABULARY
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights

TERMS = (LossTerm(temperature=2.0), LossTerm(loss="reverse_kl", weight=0.5))


def lm(folder, *, family="llama", model=None, teacher=None, alpha=0.4, more=None, **words):
    teacher = teacher or model_for(family, "lm", seed=5)
    extra = {"teacher": teacher, "distillation": DistillationConfig(alpha=alpha, losses=TERMS)} | (more or {})
    return trainer_for(family, "lm", folder, model=model, more=extra, dropout=False, **words)


def heads_of(trainer):
    """None where all logits were computed."""
    assert trainer._heads_known
    return trainer._heads


@pytest.mark.parametrize("family", ["gpt2", "llama"], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True},
        {"bf16": True},
    ],
    ids=["plain", "accumulation", "checkpointing", "bf16"],
)
def test_the_same_training_as_with_all_logits(family, words, tmp_path, monkeypatch):
    """A path that is taken by itself must not be another training."""
    ours = lm(tmp_path, family=family, **words)
    with gradient_norms(ours) as norms:
        ours.train()
    assert heads_of(ours) is not None
    monkeypatch.setattr(TaughtTrainer, "streams", lambda *_: False)
    full = lm(tmp_path, family=family, **words)
    with gradient_norms(full) as expected:
        full.train()
    tolerance = 3e-2 if words.get("bf16") else 1e-4
    assert norms == pytest.approx(expected, rel=tolerance) and len(norms) == 6
    for mine, theirs in zip(history(ours)[:-1], history(full)[:-1], strict=True):
        assert mine.keys() == theirs.keys()
        assert {k: mine[k] for k in mine if "loss" in k} == pytest.approx(
            {k: theirs[k] for k in mine if "loss" in k}, rel=tolerance
        )


def test_the_logits_of_a_batch_are_never_there(tmp_path):
    """A hook that computes them after all would save nothing."""
    trainer = lm(tmp_path, max_steps=2)
    widths, head = [], trainer.model.lm_head
    trainer.model.register_forward_hook(lambda _m, _a, out: widths.append(out["logits"].numel()))
    trainer.train()
    assert widths[-2:] == [1, 1] and "forward" not in vars(head)


def test_evaluation_in_between_is_the_stock_one(tmp_path):
    """The replaced product must not stay behind."""
    trainer = lm(tmp_path, max_steps=2)
    trainer.train()
    assert heads_of(trainer) is not None
    alone = trainer_for("llama", "lm", tmp_path, model=copy.deepcopy(trainer.model))
    assert trainer.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]


TINY = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ODD = {
    "capped": (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "scaled": (CohereConfig, {"logit_scale": 0.5}),
    "divided": (GraniteConfig, {"logits_scaling": 4.0}),
    "routed": (MixtralConfig, {"num_local_experts": 2, "output_router_logits": True}),
}


@pytest.mark.parametrize("kind", sorted(ODD))
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_models_that_change_their_logits_or_add_to_their_loss_take_the_full_path(kind, side, tmp_path):
    """Without the cap, the scale or the load-balancing term another model would be trained, with a plausible loss."""
    make, words = ODD[kind]
    torch.manual_seed(0)
    odd = AutoModelForCausalLM.from_config(make(**TINY | words, attn_implementation="eager"))
    trainer = lm(tmp_path, max_steps=1, **{("model" if side == "student" else "teacher"): odd})
    trainer.train()
    streams = kind == "routed" and side == "teacher"  # what a teacher would add to its loss does not matter
    assert (heads_of(trainer) is not None) == streams


@pytest.mark.parametrize(("targets", "streams"), [(["q_proj"], True), (["lm_head"], False)], ids=["body", "head"])
def test_adapters_stream_unless_they_sit_on_the_head(targets, streams, tmp_path):
    """The product of an adapted head is more than its weight."""
    more = {"peft_config": LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")}
    trainer = lm(tmp_path, more=more, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert (heads_of(trainer) is not None) == streams and not same(before, weights(trainer.model))


def test_a_hook_on_the_head_sees_logits(tmp_path):
    """Someone who watches the head must not be handed a sum."""
    trainer = lm(tmp_path, max_steps=1)
    trainer.model.lm_head.register_forward_hook(lambda *_: None)
    trainer.train()
    assert heads_of(trainer) is None


@pytest.mark.parametrize("words", [{"label_smoothing_factor": 0.1}], ids=["smoothing"])
def test_another_task_loss_takes_the_full_path(words, tmp_path):
    """The fused loss knows only the cross-entropy of the next token."""
    trainer = lm(tmp_path, max_steps=1, **words)
    trainer.train()
    assert not trainer._heads_known


def test_positions_that_count_for_the_task_alone_are_not_taught(tmp_path, monkeypatch):
    """Labels on padding count in the stock loss; the teacher has nothing to say there."""
    found = []
    for streams in (True, False):
        if not streams:
            monkeypatch.setattr(TaughtTrainer, "streams", lambda *_: False)
        trainer = lm(tmp_path, max_steps=2)
        inner = trainer.data_collator
        trainer.data_collator = partial(_padding_too, inner)
        trainer.train()
        found.append([{k: e[k] for k in e if "loss" in k} for e in history(trainer)[:-1]])
    for mine, full in zip(*found, strict=True):
        assert mine == pytest.approx(full, rel=1e-4)


def _padding_too(collate, rows):
    batch = collate(rows)
    return batch | {"labels": batch["input_ids"].clone()}


def test_a_teacher_that_is_not_finite_stops_the_run_and_changes_nothing(tmp_path):
    """One NaN from the teacher makes every weight NaN."""
    teacher = model_for("llama", "lm", seed=5)
    student = model_for("llama", "lm")
    trainer = lm(tmp_path, model=student, teacher=teacher)
    before = weights(student)
    token = int(next(iter(trainer.get_train_dataloader()))["input_ids"][2, 1])
    with torch.no_grad():
        teacher.model.embed_tokens.weight[token] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 1: teacher logits: NaN or infinity in batch rows [\d, ]*2") as error:
        trainer.train()
    assert error.value.code == 3 and same(before, weights(student))


def test_nothing_of_it_is_saved(tmp_path):
    """A checkpoint holds the student as it is."""
    trainer = lm(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    config = json.loads((tmp_path / "checkpoint-1" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert config["model_type"] == "llama" and same(weights(again), weights(trainer.model))
