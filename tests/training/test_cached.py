"""A training whose teacher is a folder. What these prevent: another result, or a teacher that is run after all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_shrink.distillation.cache_writing import write_cache
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig, DistillationConfig, LossTerm
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.training.taught import TaughtTrainer
from tests.tiny import VOCABULARY, tiny_classifier
from tests.training.runs import digest, gradient_norms, history, model_for, same, trainer_for, weights

KL = DistillationConfig(alpha=0.7, losses=(LossTerm(temperature=2.0), LossTerm(loss="reverse_kl", temperature=2.0)))
FAMILY = {"classification": "bert", "lm": "llama"}


def even_rows(task: str, rows: int = 48) -> Dataset:
    """Rows of one length: a product of 4 of them is the same whichever rows stand beside each other."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, len(VOCABULARY), (rows, 8), generator=generator).tolist()
    labels = {"labels": [i % 3 for i in range(rows)]} if task == "classification" else {}
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 8] * rows, **labels})


def trained(task: str, folder: Path, teacher, data=None, config=KL, **words):
    trainer = trainer_for(FAMILY[task], task, folder, more={"teacher": teacher, "distillation": config}, **words)
    if data is not None:
        trainer.train_dataset = data
    trainer.train()
    return trainer


def cache(folder: Path, task: str, teacher=None, data=None, **words) -> CachedTeacher:
    trainer = trainer_for(FAMILY[task], task, folder)
    top_k = {"top_k": words.pop("top_k")} if "top_k" in words else {}
    return write_cache(
        CacheConfig(folder=str(folder / "cache"), **top_k),
        teacher or model_for(FAMILY[task], task, seed=5),
        data or trainer.train_dataset,
        trainer.data_collator,
        **words,
    )


OTHER_PROCESS = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.distillation.cached import CachedTeacher
from tests.training.test_cached import even_rows, trained
from tests.training.runs import digest
def refuse(*_, **__): raise AssertionError("the teacher was run")
Teacher.outputs = Teacher.__call__ = Teacher.before = refuse
folder = Path(sys.argv[1])
trainer = trained("classification", folder, CachedTeacher.from_folder(folder / "cache"), even_rows("classification"))
print("weights", digest(trainer.model))
"""


def test_another_process_without_the_teacher_ends_with_the_same_weights(tmp_path: Path):
    """A cached answer that is a little off, or of the row beside it, trains just as well."""
    data = even_rows("classification")
    cache(tmp_path, "classification", data=data)
    live = trained("classification", tmp_path, model_for("bert", "classification", seed=5), data)
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"weights {digest(live.model)}" in done.stdout


@pytest.mark.parametrize("task", ["classification", "lm"])
def test_under_autocast_a_teacher_says_what_it_wrote_down_under_autocast(task: str, tmp_path: Path):
    """A cache of another precision than the live teacher's would teach something else."""
    data, found, rounded = even_rows(task), [], Teacher(model_for(FAMILY[task], task, seed=5)).under(torch.bfloat16)
    for teacher in (cache(tmp_path, task, rounded, data=data), model_for(FAMILY[task], task, seed=5)):
        found.append(trained(task, tmp_path, teacher, data, bf16=True, max_steps=2, dropout=False))
    assert [e["loss"] for e in history(found[0])[:2]] == pytest.approx([e["loss"] for e in history(found[1])[:2]], rel=1e-6)
    assert same(weights(found[0].model), weights(found[1].model))


@pytest.mark.parametrize(("task", "top_k"), [("classification", None), ("lm", len(VOCABULARY)), ("lm", None)])
def test_ragged_rows_and_accumulation_give_the_live_teachers_training(task, top_k, tmp_path: Path):
    """Padding, shuffling, two micro-batches a step, and every word kept: nothing may be left but rounding."""
    words = {"optim": "sgd", "learning_rate": 0.5, "gradient_accumulation_steps": 2}
    live = trained(task, tmp_path, model_for(FAMILY[task], task, seed=5), **words)
    cached = trained(task, tmp_path, cache(tmp_path, task, top_k=top_k), **words)
    start = weights(model_for(FAMILY[task], task))
    one, other = weights(live.model), weights(cached.model)
    assert any(not torch.equal(start[name], one[name]) for name in one)
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=2e-6, rtol=1e-5)
    for ours, theirs in zip(cached.state.log_history, live.state.log_history, strict=True):
        assert {k: v for k, v in ours.items() if k.startswith("loss")} == pytest.approx(
            {k: v for k, v in theirs.items() if k.startswith("loss")}, rel=1e-4
        )


def test_few_words_teach_less_than_all_but_in_the_same_direction(tmp_path: Path):
    """With a rest that is lost, the student would learn that the other words cannot be."""
    few = trained("lm", tmp_path, cache(tmp_path, "lm", top_k=4, temperatures=(2.0,)), learning_rate=0.0)
    live = trained("lm", tmp_path, model_for("llama", "lm", seed=5), learning_rate=0.0)
    pairs = zip(few.state.log_history[:-1], live.state.log_history[:-1], strict=True)
    assert all(0 < ours["loss/forward_kl"] < theirs["loss/forward_kl"] for ours, theirs in pairs)


@pytest.mark.parametrize("top_k", [4, None], ids=["few", "all"])
@pytest.mark.parametrize(
    "words", [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}], ids=["plain", "accumulation", "bf16"]
)
def test_a_language_model_learns_the_same_a_few_rows_of_logits_at_a_time(top_k, words, tmp_path: Path, monkeypatch):
    """A path that is taken by itself must not be another training, nor all logits be there where it is taken."""
    answers = cache(tmp_path, "lm", top_k=top_k, temperatures=(2.0,))
    ours = trainer_for("llama", "lm", tmp_path, more={"teacher": answers, "distillation": KL}, dropout=False, **words)
    sizes = []
    ours.model.register_forward_hook(lambda _model, _args, out: sizes.append(out["logits"].numel()))
    with gradient_norms(ours) as norms:
        ours.train()
    assert ours._heads is not None and ours._heads.teacher is None and {*sizes[1:]} == {1}  # the first finds the head
    monkeypatch.setattr(TaughtTrainer, "streams", lambda *_: False)
    full = trainer_for("llama", "lm", tmp_path, more={"teacher": answers, "distillation": KL}, dropout=False, **words)
    with gradient_norms(full) as expected:
        full.train()
    tolerance = 3e-2 if "bf16" in words else 1e-4
    assert norms == pytest.approx(expected, rel=tolerance) and len(norms) == 6
    for mine, theirs in zip(history(ours)[:-1], history(full)[:-1], strict=True):
        assert {"loss/task", "loss/forward_kl", "loss/reverse_kl"} < mine.keys() == theirs.keys()
        assert {k: mine[k] for k in mine if "loss" in k} == pytest.approx(
            {k: theirs[k] for k in mine if "loss" in k}, rel=tolerance
        )


def test_several_teachers_are_kept_as_the_one_they_are_together(tmp_path: Path):
    def three() -> Ensemble:
        return Ensemble([Teacher(model_for("bert", "classification", seed=seed)) for seed in (5, 6, 7)], combine="confidence")

    data = even_rows("classification")
    live = trained("classification", tmp_path, three(), data)
    cached = trained("classification", tmp_path, cache(tmp_path, "classification", three(), data), data)
    assert same(weights(live.model), weights(cached.model))


def test_how_several_are_combined_is_used_or_refused(tmp_path: Path):
    """A word that one teacher, or a cache written another way, would leave without effect."""
    config = DistillationConfig(losses=(LossTerm(),), combine="confidence")

    def trainer(teacher):
        return trainer_for("bert", "classification", tmp_path, more={"teacher": teacher, "distillation": config})

    models = [model_for("bert", "classification", seed=seed) for seed in (5, 6)]
    assert trainer(models).distiller.teacher.combine == "confidence"
    written = cache(tmp_path, "classification", Ensemble([Teacher(model) for model in models], combine="mean"))
    for teacher, says in ((models[0], "there is one teacher"), (written, "combined by mean")):
        with pytest.raises(RecipeError, match=f"combine: confidence would be ignored, .*{says}"):
            trainer(teacher)


def test_a_training_on_other_rows_stops_before_the_weights_change(tmp_path: Path):
    trainer = trainer_for("bert", "classification", tmp_path)
    foreign = cache(tmp_path, "classification", data=even_rows("classification"))
    start = weights(trainer.model)
    with pytest.raises(MismatchError, match="no answer for batch rows"):
        trained("classification", tmp_path, foreign, model=trainer.model)
    assert same(start, weights(trainer.model))


def test_losses_on_layers_are_refused_with_a_cache(tmp_path: Path):
    layers = DistillationConfig(losses=(LossTerm(loss="hidden_mse"),))
    with pytest.raises(MismatchError, match="a cache holds the teacher's logits alone"):
        trained("classification", tmp_path, cache(tmp_path, "classification"), config=layers)


def test_a_cache_knows_the_order_of_its_classes(tmp_path: Path):
    """A live teacher is reordered by name; what was written down would teach each class the answers about another."""
    written = cache(tmp_path, "classification", tiny_classifier(seed=5, labels=("red", "green", "blue")))
    assert written.labels == ["red", "green", "blue"]
    for names in (("red", "green", "blue"), ("LABEL_0", "LABEL_1", "LABEL_2")):
        more = {"teacher": written, "distillation": KL}
        trainer_for("bert", "classification", tmp_path, model=tiny_classifier(labels=names), more=more)
    with pytest.raises(MismatchError, match="written for labels red, green, blue, the student has blue, red, green"):
        model = tiny_classifier(labels=("blue", "red", "green"))
        trainer_for("bert", "classification", tmp_path, model=model, more={"teacher": written, "distillation": KL})
    said = Teacher(tiny_classifier(seed=5, labels=("red", "green", "blue")), label_order=[2, 0, 1])
    assert cache(tmp_path / "said", "classification", said).labels == []
