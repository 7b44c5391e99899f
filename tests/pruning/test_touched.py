"""What a plan promises is what pruning does, to the parameter."""

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.families import FAMILIES
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.touched import Touched, outline, touched
from hf_shrink.targets import projections
from tests import tiny

FFN = PruningConfig(structure="ffn", sparsity=0.4)


def attention_only(name: str) -> PruningConfig:
    family = FAMILIES[name].stacks[0]
    ends = [path if "." in path else f"mlp.{path}" for path in (*family.ffn_in, family.ffn_out)]
    blocks = [f"{index}.{end}" for index in (0, 1) for end in ends]
    return PruningConfig(sparsity=0.3, exclude_modules=blocks)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_expected_numbers_are_exact_and_the_same_on_the_meta_device(name):
    """A plan right to the parameter needs biases, gates and shared weights counted as surgery counts them."""
    model = tiny.tiny_classifier(name)
    with torch.device("meta"):
        blank = type(model)(model.config)
    configs = [FFN, attention_only(name)]
    plan, pruned = touched(blank, configs, total_steps=10), prune(model, configs)
    assert plan == touched(model, configs)
    assert outline(blank, configs).num_parameters() == pruned.num_parameters() < model.num_parameters()
    inside = [p for row in plan.rows if row.structure == "unstructured" for p in (pruned.get_submodule(row.module).weight,)]
    assert plan.zeros == sum(int((p == 0).sum()) for p in inside) > 0
    for row in plan.rows:
        if row.structure == "ffn":
            assert row.kept == getattr(pruned.config, FAMILIES[name].ffn_width) == 40, "38.4 is nearest to 5 times 8"


def test_tied_embeddings_are_counted_once():
    """By hand: the causal Llama with and without a tied head differ by the head alone."""
    tied = outline(tiny.tiny_causal_lm("llama", tie_word_embeddings=True), FFN)
    free = outline(tiny.tiny_causal_lm("llama"), FFN)
    assert free.num_parameters() - tied.num_parameters() == len(tiny.VOCABULARY) * 32


def test_a_row_counts_what_stays_and_what_is_not_touched_is_listed():
    model = tiny.tiny_classifier("bert", hidden=8, ffn=1536)
    plan = touched(model, PruningConfig(structure="ffn", sparsity=0.5, round_to=64))
    assert plan.rows[0] == Touched("bert.encoder.layer.0", "pruning.0", "ffn", "neurons", 768, 1536, 64)
    assert set(plan.skipped) == {
        n for n in projections(model) if not n.endswith(("intermediate.dense", "0.output.dense", "1.output.dense"))
    }
    plan = touched(model, PruningConfig(sparsity=0.25, target_modules=["classifier"]))
    assert plan.rows == (Touched("classifier", "pruning.0", "unstructured", "weights", 18, 24, 1),)
    assert len(plan.skipped) == len(projections(model)) - 1


def test_schedules_are_checked_only_where_the_length_of_the_training_is_known():
    model, config = tiny.tiny_classifier("bert"), PruningConfig(sparsity=0.5, end_step=50)
    assert touched(model, config).rows
    with pytest.raises(RecipeError, match=r"pruning\.0\.end_step: end_step 50 > 40 steps"):
        touched(model, config, total_steps=40)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_outline_on_the_meta_device_has_the_shapes_of_the_real_thing(name):
    """A plan that promises another size than the run delivers is worse than none."""
    model = tiny.tiny_classifier(name)
    with torch.device("meta"):
        blank = type(model)(model.config)
    configs = [FFN, attention_only(name)]
    planned, real = outline(blank, configs), prune(model, configs)
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert planned.config.to_dict() == real.config.to_dict() != model.config.to_dict()
    assert all(parameter.is_meta for parameter in planned.parameters())
