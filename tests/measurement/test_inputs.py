"""Random inputs must be valid for every family, or timing fails or measures something else."""

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.inputs import longest, random_inputs
from tests.tiny import FAMILIES, tiny_classifier


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_the_same_for_a_seed_and_hold_no_special_token(family):
    """A padding token drawn by chance moves the pooled position of GPT-2 and Llama."""
    model = tiny_classifier(family)
    first, second, other = (random_inputs(model, batch_size=3, length=20, seed=seed) for seed in (0, 0, 1))
    ids = first["input_ids"]
    assert ids.shape == (3, 20) and first["attention_mask"].all()
    assert torch.equal(ids, second["input_ids"]) and not torch.equal(ids, other["input_ids"])
    config = model.config
    special = {config.pad_token_id, getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)} - {None}
    assert special and not any((ids == i).any() for i in special)
    assert int(ids.max()) < config.vocab_size


@pytest.mark.parametrize(
    ("family", "limit"), [("bert", 64), ("roberta", 63), ("distilbert", 64), ("gpt2", 64), ("llama", None)]
)
def test_the_longest_input_is_what_the_model_really_takes(family, limit):
    """RoBERTa loses the rows up to its padding index: one token more dies inside an embedding."""
    model = tiny_classifier(family)
    assert longest(model) == limit
    model(**random_inputs(model, batch_size=1, length=limit or 80))
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))
        with pytest.raises(RecipeError, match=f"at most {limit}"):
            random_inputs(model, batch_size=1, length=limit + 1)


def test_a_model_with_several_end_tokens_draws_none_of_them():
    """Llama 3 Instruct names a list of ends: it could be neither timed nor measured."""
    model = tiny_classifier("llama")
    model.config.eos_token_id = [3, 5]
    drawn = random_inputs(model, batch_size=4, length=40)["input_ids"]
    assert not set(drawn.flatten().tolist()) & {0, 2, 3, 5}
