"""Which layer learns from which, by hand; numbers that move in a straight line."""

import pytest
import torch

from hf_shrink.distillation.attention import relation
from hf_shrink.distillation.layer_maps import layer_pairs
from hf_shrink.distillation.projections import Projections
from hf_shrink.distillation.ramps import along
from hf_shrink.distillation.vocabularies import shared_words
from hf_shrink.errors import MismatchError


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 6, [(0, 1), (1, 3), (2, 5)]),
        (6, 6, [(i, i) for i in range(6)]),
        (4, 6, [(0, 1), (1, 2), (2, 4), (3, 5)]),
        (1, 12, [(0, 11)]),
        (4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
    ],
)
def test_uniform_spreads_the_teacher_and_pairs_last_with_last(student, teacher, expected):
    """A map that is one off never compares the last layers."""
    assert list(layer_pairs("uniform", student, teacher, where="x")) == expected


@pytest.mark.parametrize("student", range(1, 9))
@pytest.mark.parametrize("teacher", range(1, 13))
def test_every_uniform_map_is_in_range_and_never_falls(student, teacher):
    """Layers that cross teach the student to forget and learn again."""
    pairs = layer_pairs("uniform", student, teacher, where="x")
    theirs = [pair[1] for pair in pairs]
    assert [pair[0] for pair in pairs] == list(range(student)) and theirs == sorted(theirs)
    assert min(theirs) >= 0 and theirs[-1] == teacher - 1


def test_a_straight_line_begins_and_ends_where_it_says():
    """One step too late, the last step still has another temperature."""
    assert [along(1.0, 3.0, step, 5) for step in range(6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert along(1.0, None, 3, 5) == 1.0 and along(1.0, 0.0, 0, 1) == 0.0


def test_relations_are_softmaxes_of_scaled_products_by_hand():
    """Without the scale wide heads relate to themselves alone."""
    heads = torch.randn(1, 2, 3, 4)
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), torch.finfo(torch.float32).min)
    found = relation(heads, mask, groups=2)
    for head in range(2):
        for position in range(3):
            scores = torch.stack([heads[0, head, position] @ heads[0, head, other] / 2 for other in range(position + 1)])
            torch.testing.assert_close(found[0, position, head, : position + 1].exp(), scores.softmax(0))
    joined = relation(heads, None, groups=1)
    wide = heads.transpose(1, 2).reshape(3, 8)
    torch.testing.assert_close(joined[0, :, 0], (wide @ wide.T / 8**0.5).log_softmax(-1))


def test_equal_widths_need_no_projection_and_random_numbers_stay_as_they_were():
    """A map between equal widths is a way for the student not to learn."""
    assert not list(Projections(["a"], 8, 8).parameters())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    maps = Projections(["a", "b"], 8, 6, seed=4)
    assert torch.equal(torch.rand(3), expected) and maps("a", torch.randn(5, 8)).shape == (5, 6)
    assert torch.equal(maps.maps["a"].weight, Projections(["a", "b"], 8, 6, seed=4).maps["a"].weight)


@pytest.mark.parametrize(("sizes", "words"), [((10, 10, None), 10), ((10, 12, 10), 10), ((12, 10, 9), 10)])
def test_the_smaller_vocabulary_is_shared_where_it_holds_every_token(sizes, words):
    """B22: 152,064 against 151,936 words of one tokenizer."""
    assert shared_words(*sizes) == words


@pytest.mark.parametrize("sizes", [(10, 12, 11), (12, 10, None)])
def test_a_cut_token_is_refused(sizes):
    """A real token whose logit is dropped can never be taught."""
    with pytest.raises(MismatchError):
        shared_words(*sizes)
