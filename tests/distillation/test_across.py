"""Universal logit distillation: values worked out by hand, and laws of a distance of sorted lists."""

import pytest
import torch

from hf_shrink.columns import TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES
from hf_shrink.distillation import across
from hf_shrink.distillation.across import uld
from hf_shrink.distillation.config import DistillationConfig, LossTerm, OnPolicyConfig
from hf_shrink.distillation.crossing import CrossingTeacher
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from tests.tiny import tiny_causal_lm

ULD = DistillationConfig(losses=(LossTerm(loss="uld"),))


def test_the_shorter_vocabulary_is_filled_up_with_zeros():
    """By hand: 0.6, 0.3, 0.1 and nothing against 0.4, 0.3, 0.2, 0.1 make 0.2 + 0 + 0.1 + 0.1; by place it would be 1.0."""
    student, teacher = torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([[0.4, 0.1, 0.2, 0.3]]).log()
    torch.testing.assert_close(uld(student, teacher), torch.tensor([0.4]))
    torch.testing.assert_close(uld(teacher, student), torch.tensor([0.4]))


def test_which_word_is_which_does_not_matter_and_padding_of_a_vocabulary_neither():
    """Words of two tokenizers have no order in common; a row of the head that is never said has probability 0."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 11), torch.randn(6, 17)
    found = uld(student, teacher, temperature=2.0)
    mixed = uld(student[:, torch.randperm(11)], teacher[:, torch.randperm(17)], temperature=2.0)
    torch.testing.assert_close(mixed, found)
    padded = torch.cat([teacher, torch.full((6, 5), -1e4)], dim=-1)
    torch.testing.assert_close(uld(student, padded, temperature=2.0), found)
    assert found.min() > 0 and found.max() < 4


def test_it_is_twice_its_temperature_at_most():
    """One who is sure of one word against one who knows nothing of a million."""
    sure, lost = torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2**20)
    torch.testing.assert_close(uld(sure, lost, temperature=1.0), torch.tensor([2.0]), rtol=1e-5, atol=0)


def test_rows_sorted_a_few_at_a_time_are_the_same_loss_and_gradient(monkeypatch):
    """A piece lost or counted twice makes a gradient a little wrong."""
    torch.manual_seed(1)
    teacher, found = torch.randn(3, 5, 13), []
    for piece in (2**22, 40):
        monkeypatch.setattr(across, "PIECE", piece)
        torch.manual_seed(2)
        student = torch.randn(3, 5, 9, requires_grad=True)
        values = uld(student, teacher, temperature=1.5)
        (values * torch.arange(1.0, 16.0).view(3, 5)).sum().backward()
        found.append((values.detach(), student.grad))
    torch.testing.assert_close(found[1], found[0])
    assert found[0][1].abs().min() > 0


def test_the_teacher_answers_at_the_students_positions():
    """One position beside, and the student learns what was said about the token before."""
    model = tiny_causal_lm("llama", seed=5)
    ids = torch.tensor([[2, 5, 6, 7, 8], [2, 9, 10, 11, 3]])
    places = torch.tensor([[1, 3, -1], [0, 2, 4]])
    batch = {TEACHER_IDS: ids, TEACHER_MASK: torch.ones_like(ids), TEACHER_PLACES: places}
    found = CrossingTeacher(model).outputs(batch | {"input_ids": ids[:, :3]})["logits"]
    with torch.no_grad():
        whole = model(ids).logits
    assert torch.equal(found[0, :2], whole[0, [1, 3]]) and torch.equal(found[1], whole[1, [0, 2, 4]])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"losses": (LossTerm(loss="uld"), LossTerm())}, "forward_kl compares the same tokens"),
        ({"losses": (LossTerm(loss="uld"),), "on_policy": OnPolicyConfig(mix=0.5)}, "a sample has no row"),
    ],
)
def test_what_does_not_go_with_two_tokenizers_is_refused_where_it_is_written(more, message):
    with pytest.raises(RecipeError, match=message):
        DistillationConfig(**more)


def test_rows_without_the_teachers_tokens_and_places_that_do_not_fit_are_refused():
    """The student's ids are other words to the teacher, and it answers without an error."""
    model = tiny_causal_lm("llama", seed=5)
    ids = torch.tensor([[2, 5, 6]])
    with pytest.raises(MismatchError, match=f"without '{TEACHER_IDS}'"):
        CrossingTeacher(model).outputs({"input_ids": ids})
    beyond = {TEACHER_IDS: ids, TEACHER_MASK: torch.ones_like(ids), TEACHER_PLACES: ids}
    with pytest.raises(MismatchError, match="up to 6, do not fit"):
        CrossingTeacher(model).outputs(beyond)
    with pytest.raises(MismatchError, match="pass a CrossingTeacher"):
        Distiller(ULD, Teacher(model))
