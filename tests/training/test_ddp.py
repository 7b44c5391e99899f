"""Two processes train one model."""

import json

import pytest

from tests.training.ddp_worker import RUNS, staged, trainer
from tests.training.runs import gradient_norms
from tests.two_ranks import run_on_two


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo ranks found."""
    folder = tmp_path_factory.mktemp("ddp")
    run_on_two("tests.training.ddp_worker", folder)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("family", sorted(RUNS))
def test_ranks_end_with_equal_weights(family, ranks):
    """Equal masks are not enough: the weights under them may drift apart."""
    assert ranks[0][family]["digest"] == ranks[1][family]["digest"]
    assert ranks[0]["whole"] == ranks[1]["whole"]


@pytest.mark.parametrize("family", sorted(RUNS))
def test_two_ranks_take_the_steps_of_one(family, ranks, tmp_path):
    """The stock Trainer multiplies gradient and evaluation loss of classification heads by the number of ranks."""
    alone = trainer(family, tmp_path, world=1, dropout=False, eval_strategy="steps", eval_steps=5)
    with gradient_norms(alone) as norms:
        alone.train()
    logs = alone.state.log_history
    assert ranks[0][family]["norms"] == pytest.approx(norms, rel=1e-3) and len(norms) == 5
    assert ranks[0][family]["loss"] == pytest.approx([e["loss"] for e in logs if "loss" in e], rel=1e-3)
    assert ranks[0][family]["kl"] == pytest.approx([e["loss/forward_kl"] for e in logs if "loss/forward_kl" in e], rel=1e-2)
    assert ranks[0][family]["eval"] == pytest.approx([e["eval_loss"] for e in logs if "eval_loss" in e], rel=2e-2)


def test_two_ranks_learn_one_projection_and_take_the_steps_of_one(ranks, tmp_path):
    """A projection is outside of what data parallel training keeps equal: each rank would learn its own."""
    assert ranks[0]["projections"] == ranks[1]["projections"] and ranks[0]["inside"] == ranks[1]["inside"]
    alone = trainer("bert", tmp_path, world=1, dropout=False, inside=True)
    alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert ranks[0]["inside_loss"] == pytest.approx(losses, rel=1e-3) and len(losses) == 5


def test_layers_rest_on_two_ranks_as_on_one(ranks, tmp_path):
    """Data parallel training wants a gradient for every weight: a layer at rest must not move by one that is zero."""
    assert ranks[0]["staged"] == ranks[1]["staged"]
    alone = staged(tmp_path, world=1)
    alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert ranks[0]["staged_loss"] == pytest.approx(losses, rel=1e-3) and len(losses) == 6
    weight = alone.student.get_parameter("bert.encoder.layer.0.output.dense.weight").flatten()[:99].tolist()
    assert ranks[0]["staged_weight"] == pytest.approx(weight, rel=1e-2, abs=1e-4)


def test_a_resumed_run_of_two_ranks_is_equal_bit_for_bit(ranks):
    """Each rank has random numbers of its own: a checkpoint with those of one rank resumes another run."""
    assert ranks[0]["whole"] == ranks[0]["again"] == ranks[1]["again"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "checkpoint_manifest.json"} <= set(ranks[0]["files"])
