"""A language model in training that learns from one with another tokenizer."""

import copy
import shutil
from functools import cache

import pytest
import torch
from peft import LoraConfig

from hf_shrink.columns import TEACHER_COLUMNS, TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES
from hf_shrink.data.two_tokenizers import both_collator, in_both
from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.training.taught import TaughtTrainer
from hf_shrink.training.trainer import ShrinkTrainer
from tests.tiny import colour_texts, other_tokenizer, tiny_lm_tokenizer
from tests.training.runs import arguments, gradient_norms, history, model_for, same, trainer_for, weights

TERM = LossTerm(loss="uld", temperature=1.5)


@cache
def rows(count, seed):
    return in_both(colour_texts(count, seed=seed), tiny_lm_tokenizer(), other_tokenizer(), 16)


def teacher():
    return model_for("llama", "lm", seed=5, dropout=False, vocab_size=len(other_tokenizer()), layers=3)


def trainer(folder, *, family="llama", alpha=0.6, count=14, given=None, model=None, more=None, **words):
    return ShrinkTrainer(
        model=model or model_for(family, "lm", dropout=words.pop("dropout", False)),
        args=arguments(folder, **words),
        data_collator=both_collator(tiny_lm_tokenizer(), other_tokenizer()),
        train_dataset=rows(count, 1),
        eval_dataset=rows(8, 2).remove_columns(list(TEACHER_COLUMNS)),
        processing_class=tiny_lm_tokenizer(),
        teacher=teacher() if given is None else given,
        distillation=DistillationConfig(alpha=alpha, losses=(TERM,)),
        **more or {},
    )


def losses(run):
    return [{k: e[k] for k in e if "loss" in k} for e in history(run) if "loss" in e]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("streams", [True, False])
def test_the_loss_is_that_of_the_pairs_of_positions_alone(family, streams, tmp_path, monkeypatch):
    """The second implementation: row by row, pair by pair, without padding. One place beside is another loss."""
    if not streams:
        monkeypatch.setattr(TaughtTrainer, "streams", lambda *_: False)
    run = trainer(tmp_path, family=family, alpha=1.0, max_steps=1, learning_rate=0.0, per_device_train_batch_size=14)
    total, pairs = 0.0, 0
    for row in rows(14, 1):
        with torch.no_grad():
            ours = run.model.eval()(torch.tensor([row["input_ids"]])).logits[0]
            theirs = run.distiller.teacher.model(torch.tensor([row[TEACHER_IDS]])).logits[0]
        for place, other in enumerate(row[TEACHER_PLACES]):
            if other >= 0:
                p, q = (x[at].double().div(1.5).softmax(-1) for x, at in ((ours, place), (theirs, other)))
                p, q = (torch.cat([x.sort(descending=True)[0], torch.zeros(60 - len(x))]) for x in (p, q))
                total, pairs = total + 1.5 * (p - q).abs().sum().item(), pairs + 1
    run.train()
    assert (run._heads is not None) == streams and pairs > 100
    assert run.state.log_history[0]["loss"] == pytest.approx(total / pairs, rel=1e-5)


@pytest.mark.parametrize("streams", [True, False])
def test_gradient_and_loss_do_not_depend_on_the_number_of_micro_batches(streams, tmp_path, monkeypatch):
    """Rows are ragged on both sides: only the pairs of the whole step are the right divisor."""
    if not streams:
        monkeypatch.setattr(TaughtTrainer, "streams", lambda *_: False)
    found = []
    for batch, steps in ((14, 1), (4, 4)):
        run = trainer(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=2)
        with gradient_norms(run) as norms:
            run.train()
        found.append([*norms, *(value for entry in losses(run) for value in entry.values())])
    assert min(found[0]) > 1e-3 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_what_is_written_in_padding_does_not_matter_and_prompts_do_not_count(tmp_path):
    """Padding on the teacher's side counts by itself: its rows have other lengths."""
    found = []
    for filler in (0, 9):
        run = trainer(tmp_path, max_steps=2, per_device_train_batch_size=4)
        inner = run.data_collator
        run.data_collator = lambda rows, inner=inner, filler=filler: _filled(inner(rows), filler)
        run.train()
        found.append((losses(run), weights(run.model)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


def _filled(batch, filler):
    ours, theirs = batch["attention_mask"] == 0, batch[TEACHER_MASK] == 0
    assert ours.any() and theirs.any()
    ids, other = batch["input_ids"].masked_fill(ours, filler), batch[TEACHER_IDS].masked_fill(theirs, filler)
    labels = batch["labels"].clone()
    labels[:, 2] = -100  # a position that is not learnt is not taught
    return batch | {"input_ids": ids, TEACHER_IDS: other, "labels": labels}


def test_a_label_of_minus_100_takes_its_pair_away(tmp_path):
    counts = []
    for hidden in (False, True):
        run = trainer(tmp_path, max_steps=1, per_device_train_batch_size=14)
        inner, found = run.data_collator, []
        run.data_collator = lambda rows, inner=inner, hidden=hidden: _hide(inner(rows)) if hidden else inner(rows)
        positions = run.distiller.positions
        run.distiller.positions = lambda batch, f=positions, found=found: found.append(int(f(batch).sum())) or f(batch)
        run.train()
        counts.append(found[0])
    assert counts[1] == counts[0] - 14


def _hide(batch):
    labels = batch["labels"].clone()
    labels[:, 2] = -100
    return batch | {"labels": labels}


def test_the_student_becomes_as_sure_as_its_teacher_and_evaluation_is_the_stock_one(tmp_path):
    """A gradient that does not arrive leaves the curve flat; the teacher's columns in an evaluation would change its loss."""
    given = teacher()
    with torch.no_grad():
        given.lm_head.weight *= 12  # one who has something to say
    run = trainer(tmp_path, alpha=1.0, given=given, max_steps=12, learning_rate=2e-2)
    run.train()
    terms = [e["loss/uld"] for e in run.state.log_history if "loss/uld" in e]
    assert terms[-1] < 0.8 * terms[0]
    alone = trainer_for("llama", "lm", tmp_path, model=copy.deepcopy(run.model))
    alone.eval_dataset, alone.data_collator = run.eval_dataset, run.data_collator
    assert run.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]


def test_alpha_zero_is_plain_training_bit_for_bit(tmp_path):
    """What the columns cost must not be another run."""
    plain = trainer_for("gpt2", "lm", tmp_path, max_steps=3)
    plain.train_dataset, plain.data_collator = rows(14, 1), both_collator(tiny_lm_tokenizer(), other_tokenizer())
    plain.train()
    taught = trainer(tmp_path, family="gpt2", alpha=0.0, dropout=True, max_steps=3)
    taught.train()
    assert same(weights(plain.model), weights(taught.model))


def test_a_resumed_run_is_equal_bit_for_bit(tmp_path):
    words = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "dropout": True, "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "a", family="gpt2", **words)
    whole.train()
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    again = trainer(tmp_path / "b", family="gpt2", **words)
    again.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(again.model)) and losses(again) == losses(whole)


def test_a_teacher_that_is_not_finite_stops_the_run_and_changes_nothing(tmp_path):
    given, run = teacher(), None
    with torch.no_grad():
        given.lm_head.weight[3] = float("nan")
    run = trainer(tmp_path, given=given, max_steps=1)
    before = weights(run.model)
    with pytest.raises(NonFiniteError, match="step 1: teacher logits"):
        run.train()
    assert same(before, weights(run.model))


def test_adapters_on_the_head_take_the_usual_way(tmp_path):
    """A path of its own, and with it the sort of all rows at once."""
    more = {"peft_config": LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")}
    run = trainer(tmp_path, more=more, max_steps=1)
    with gradient_norms(run) as norms:
        run.train()
    assert run._heads is None and norms[0] > 0


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (("bert", "classification"), None, "the student is a BertForSequenceClassification"),
        (None, ("bert", "classification"), "the teacher is a BertForSequenceClassification"),
        (None, [("llama", "lm"), ("llama", "lm")], "one live teacher"),
    ],
)
def test_who_cannot_be_compared_is_refused(model, given, message, tmp_path):
    """Sorted probabilities of classes say nothing of which class."""
    student = None if model is None else model_for(*model)
    if isinstance(given, list):
        teachers = [model_for(*each, seed=5) for each in given]
    else:
        teachers = None if given is None else model_for(*given, seed=5)
    with pytest.raises(MismatchError, match=message):
        trainer(tmp_path, model=student, given=teachers)


def test_rows_without_the_teachers_columns_are_refused_before_the_first_step(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.train_dataset = run.train_dataset.remove_columns([TEACHER_IDS])
    run.data_collator = lambda rows: {k: torch.tensor([row[k][:3] for row in rows]) for k in ("input_ids", "labels")}
    with pytest.raises(MismatchError, match="uld needs rows in the teacher's tokens"):
        run.train()
