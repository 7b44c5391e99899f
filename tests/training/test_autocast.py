"""A teacher under the training's autocast. What these prevent: a student that is taught its own rounding."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_shrink.distillation.cache_writing import write_cache
from hf_shrink.distillation.config import CacheConfig, DistillationConfig, LossTerm
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from tests.training.runs import gradient_norms, model_for, trainer_for

ON_CLASSES = ("forward_kl", "reverse_kl", "symmetric_kl", "jsd", "total_variation", "soft_cross_entropy", "decoupled_kd")
ON_LAYERS = ("hidden_mse", "hidden_cosine", "pkd", "embedding_mse")
ON_ATTENTION = ("attention_kl", "attention_mse", "query_relation_kl", "key_relation_kl", "value_relation_kl")
STILL: dict[str, Any] = {"max_steps": 1, "dropout": False, "bf16": True}


def taught_by_itself(family: str, task: str, folder: Path, losses: tuple[str, ...], made=copy.deepcopy, **words: Any):
    """Terms of one step, and the norm of its gradient, of a student whose teacher is its copy."""
    student = model_for(family, task, dropout=False)
    config = DistillationConfig(alpha=1.0, losses=tuple(LossTerm(loss=name) for name in losses))
    more = {"teacher": made(student), "distillation": config}
    trainer = trainer_for(family, task, folder, model=student, more=more, **STILL | words)
    with gradient_norms(trainer) as norms:
        trainer.train()
    return {name: trainer.state.log_history[0][f"loss/{name}"] for name in losses}, norms[0], trainer


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("losses", [(*ON_CLASSES, "logit_mse", *ON_LAYERS), ON_ATTENTION], ids=["vectors", "attention"])
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "lm")])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family, task, losses, checkpointing, tmp_path: Path):
    """A teacher in float32 beside a student in bfloat16 pulls each weight towards what rounding took from it."""
    terms, norm, _ = taught_by_itself(family, task, tmp_path, losses, gradient_checkpointing=checkpointing)
    entropy = terms.pop("soft_cross_entropy", None)
    assert terms == pytest.approx(dict.fromkeys(terms, 0.0), abs=1e-8)
    assert (entropy is None) or entropy > 0.5
    assert norm < 1e-6


def test_a_language_model_learns_nothing_of_itself_a_few_rows_at_a_time(tmp_path: Path):
    """The teacher's last product is taken outside its forward pass, where no autocast reaches it."""
    terms, norm, trainer = taught_by_itself("llama", "lm", tmp_path, ON_CLASSES)
    terms.pop("soft_cross_entropy")
    assert trainer._heads is not None and trainer._heads.precision == torch.bfloat16
    assert terms == pytest.approx(dict.fromkeys(terms, 0.0), abs=1e-8) and norm < 1e-6


def test_a_student_that_two_copies_of_itself_teach_has_nothing_to_learn(tmp_path: Path):
    """Each of several teachers answers under autocast, not the mean alone."""
    made = lambda student: [copy.deepcopy(student), copy.deepcopy(student)]  # noqa: E731
    terms, norm, _ = taught_by_itself("bert", "classification", tmp_path, ("forward_kl", "reverse_kl"), made)
    assert terms == pytest.approx(dict.fromkeys(terms, 0.0), abs=1e-6) and norm < 1e-5


@pytest.mark.parametrize("ready", [torch.float32, torch.bfloat16], ids=["float", "already in 16 bits"])
def test_only_float_teachers_share_the_students_precision(ready: torch.dtype):
    """Weights that were rounded once, to another grid, would be rounded a second time."""
    model = model_for("bert", "classification").to(ready)
    teacher = Teacher(model, label_order=[2, 0, 1])
    shared = teacher.under(torch.bfloat16)
    assert teacher.precision is None and shared.label_order == [2, 0, 1]
    assert shared.precision == (torch.bfloat16 if ready == torch.float32 else None)
    ids = {"input_ids": torch.tensor([[2, 5, 7, 3]])}
    with torch.autocast("cpu", torch.bfloat16, enabled=ready == torch.float32):
        expected = model.eval()(**ids).logits[..., [2, 0, 1]]
    assert torch.equal(shared(ids), expected.detach())
    assert torch.equal(shared(ids), teacher(ids)) == (ready == torch.bfloat16)


def test_a_teacher_that_was_trained_in_16_bits_is_asked_in_its_own_precision(tmp_path: Path):
    """A Trainer leaves its autocast on the model: in float32 its student would learn 16-bit answers."""
    taught = trainer_for("bert", "classification", tmp_path, max_steps=1, bf16=True)
    taught.train()
    fresh = model_for("bert", "classification")
    fresh.load_state_dict(taught.model.state_dict())
    ids = {"input_ids": torch.tensor([[2, 5, 7, 3]])}
    assert torch.equal(Teacher(taught.model)(ids), Teacher(fresh)(ids))


def test_a_cache_says_under_which_autocast_it_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A cache of float32 answers, taken for those under autocast, is another teacher than the live one."""
    trainer = trainer_for("bert", "classification", tmp_path)
    models = [model_for("bert", "classification", seed=seed) for seed in (5, 6)]
    for teacher in (Teacher(models[0]), Ensemble([Teacher(model) for model in models])):
        caches = [
            write_cache(
                CacheConfig(folder=str(tmp_path / f"{len(teacher.models)}-{precision}")),
                teacher.under(precision),
                trainer.train_dataset,
                trainer.data_collator,
            )
            for precision in (None, torch.bfloat16)
        ]
        keys = [cache.manifest.key for cache in caches]
        assert keys[1] == keys[0] | {"autocast": "bfloat16"} and "autocast" not in keys[0]
        for cache, same, other in ((caches[0], None, torch.bfloat16), (caches[1], torch.bfloat16, None)):
            assert cache.under(same) is cache and not caplog.records
            assert cache.under(other) is cache and "this training has" in caplog.text
            caplog.clear()
