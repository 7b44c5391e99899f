"""Attention that can be watched: the model stays what it was, and what is seen is what happened."""

import pytest
import torch

from hf_shrink.distillation.watching import watchable, watched_blocks, watching
from hf_shrink.errors import MismatchError
from tests.tiny import ALL_FAMILIES, tiny_causal_lm, tiny_classifier, tiny_inputs

ONE_STACK = [family for family in ALL_FAMILIES if family != "t5"]


@pytest.mark.parametrize("family", ONE_STACK)
def test_results_and_saved_config_stay_those_of_the_stock_attention(family, tmp_path):
    """A mask read the other way round, or a scale forgotten, is another model."""
    model, batch = tiny_classifier(family), tiny_inputs(family)
    with torch.no_grad():
        before = model(**batch).logits
        blocks = watched_blocks(model, "student")
        with watchable([model]), watching(dict(enumerate(blocks))) as seen:
            after = model(**batch).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert sorted(seen) == [0, 1] and seen[0].queries.shape[:2] == (2, 4)
    model.save_pretrained(tmp_path)
    assert "hf_shrink" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_is_seen_are_the_probabilities_of_the_plain_attention(family):
    """The stock plain attention gives them too, where there is no dropout."""
    model, batch = tiny_classifier(family, attn_implementation="eager"), tiny_inputs(family)
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions
        with watchable([model]), watching(dict(enumerate(watched_blocks(model, "student")))) as seen:
            model(**batch)
    for layer, probabilities in enumerate(expected):
        torch.testing.assert_close(seen[layer].log_probabilities.exp(), probabilities, rtol=1e-5, atol=1e-6)


def test_a_causal_model_shows_no_probability_of_what_comes_later():
    """A relation over the future teaches what the student can never see."""
    model, batch = tiny_causal_lm("llama"), tiny_inputs("llama")
    with torch.no_grad(), watchable([model]), watching({0: watched_blocks(model, "student")[0]}) as seen:
        model(**batch)
    later = torch.ones(5, 5).triu(1).bool()
    assert seen[0].log_probabilities.exp()[..., later].max() == 0 and seen[0].mask[..., later].max() < -1e9


def test_only_what_is_asked_for_is_kept_and_nothing_after():
    """Attention of every layer kept for the whole training is memory without end."""
    from hf_shrink.distillation import watching as room

    model, batch = tiny_classifier("bert"), tiny_inputs("bert")
    blocks = watched_blocks(model, "student")
    with watchable([model]):
        with watching({1: blocks[1]}) as seen:
            model(**batch)
        model(**batch)
    assert list(seen) == [1] and not room._watched
    with pytest.raises(RuntimeError, match="stop"), watching({1: blocks[1]}):
        raise RuntimeError("stop")
    assert not room._watched


def test_two_stacks_are_refused():
    """Layer 1 of an encoder-decoder is two layers."""
    with pytest.raises(MismatchError, match="encoder and a decoder"):
        watched_blocks(tiny_classifier("t5"), "teacher")
