"""Stages of a progressive distillation. What these prevent: a layer that is never compared, or learns at another's turn."""

import pytest

from hf_shrink.distillation.config import DistillationConfig, LossTerm, ProgressiveConfig
from hf_shrink.distillation.stages import named, stage_at, stages_of
from hf_shrink.errors import RecipeError

TERMS = named([LossTerm(loss="hidden_mse"), LossTerm(loss="embedding_mse"), LossTerm(loss="value_relation_kl")])
PAIRS = {"hidden_mse": ((0, 1), (2, 5)), "embedding_mse": ((0, 0),), "value_relation_kl": ((2, 5),)}


def test_from_the_bottom_layers_are_added():
    one, two = stages_of(ProgressiveConfig(steps_per_layer=10), TERMS, PAIRS)
    assert (one.begin, one.end, one.depths) == (0, 10, range(2))
    assert one.pairs == {"hidden_mse": ((0, 1),), "embedding_mse": ((0, 0),)}
    assert (two.begin, two.end, two.depths, two.pairs) == (10, 20, range(4), PAIRS)


def test_layer_by_layer_those_below_rest_and_those_between_learn_with_the_next():
    config = ProgressiveConfig(order="layer_by_layer", steps_per_layer=(3, 4))
    one, two = stages_of(config, TERMS, PAIRS)
    assert one.depths == range(2) and one.pairs == {"hidden_mse": ((0, 1),), "embedding_mse": ((0, 0),)}
    assert (two.begin, two.end, two.depths) == (3, 7, range(2, 4))
    assert two.pairs == {"hidden_mse": ((2, 5),), "value_relation_kl": ((2, 5),)}
    assert [stage_at((one, two), step) for step in (0, 2, 3, 6, 7, 99)] == [one, one, two, two, None, None]


def test_a_list_of_steps_has_one_number_for_each_compared_layer():
    with pytest.raises(RecipeError, match=r"3 numbers for 2 stages\.\n.*: 0, 2"):
        stages_of(ProgressiveConfig(steps_per_layer=(1, 2, 3)), TERMS, PAIRS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"losses": (LossTerm(),)}, "no loss compares layers"),
        ({"losses": (LossTerm(loss="embedding_mse"),)}, "no loss compares layers"),
        ({"losses": (LossTerm(loss="hidden_mse"),), "alpha": 0.0}, "nothing is learnt from the teacher at alpha 0"),
    ],
)
def test_stages_without_anything_to_learn_are_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        DistillationConfig(progressive=ProgressiveConfig(steps_per_layer=2), **words)


def test_a_loss_called_task_is_no_task_loss():
    """Logged under the task loss's name, the two would be one curve."""

    def task(student, teacher):
        return (student - teacher).square().mean(dim=-1)

    assert list(named([LossTerm(loss=task), LossTerm(loss="forward_kl"), LossTerm(loss="forward_kl")])) == [
        "task_2",
        "forward_kl",
        "forward_kl_2",
    ]
