"""The numbers of tokens that configs name, in a model whose vocabulary was cut. What these prevent: generation that never
stops, and padding that counts, because an id names another token now."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    MarianConfig,
    MarianMTModel,
)

from hf_shrink.errors import MismatchError
from hf_shrink.pruning.token_ids import special_ids
from hf_shrink.pruning.vocabulary import cut_vocabulary
from tests import tiny
from tests.pruning.test_vocabulary import KEPT, SIZE, t5


def test_ids_in_configs_follow():
    """By hand: 17 -> 7, 23 -> 8, 31 -> 10; what suppresses a token that has gone has nothing left to suppress."""
    model = tiny.tiny_causal_lm("llama", vocab_size=SIZE, pad_token_id=9)
    model.config.bos_token_id, model.config.eos_token_id = 17, [23, 31]
    settings = model.generation_config
    settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = 17, [23, 31], 9
    settings.suppress_tokens, settings.begin_suppress_tokens = [31, 32], [33]
    settings.bad_words_ids, settings.forced_eos_token_id = [[23, 31], [31, 32]], 23
    assert special_ids(model) == {9, 17, 23, 31}
    small = cut_vocabulary(model, KEPT)
    for holder in (small.config, small.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (7, [8, 10], 5)
    after = small.generation_config
    assert (after.suppress_tokens, after.begin_suppress_tokens) == ([10], None)
    assert (after.bad_words_ids, after.forced_eos_token_id) == ([[8, 10]], 8)
    assert (settings.eos_token_id, model.config.eos_token_id) == ([23, 31], [23, 31])


def test_ids_outside_the_vocabulary_name_nothing_before_or_after():
    """GPT-2's default end token is 50256: it must not end up as one of the tokens of a small vocabulary."""
    model = tiny.tiny_causal_lm("gpt2", vocab_size=SIZE)
    model.config.eos_token_id = 50256
    assert cut_vocabulary(model, KEPT).config.eos_token_id == 50256
    assert 50256 not in special_ids(model)


def test_encoder_and_decoder_configs_follow_too():
    """T5's stacks have configs of their own, which a later change of their size would build from."""
    model = t5()
    small = cut_vocabulary(model, KEPT)
    assert [stack.config.vocab_size for stack in (small, small.encoder, small.decoder)] == [16, 16, 16]
    assert model.encoder.config.vocab_size == SIZE


def test_an_id_that_a_config_names_has_to_be_kept():
    """Otherwise padding would be some other token."""
    model = tiny.tiny_classifier("bert", vocab_size=SIZE)
    model.config.pad_token_id = 5
    with pytest.raises(MismatchError, match=r"pad_token_id is 5, which is not kept"):
        cut_vocabulary(model, KEPT)


def test_a_head_over_the_vocabulary_that_no_config_knows_is_named():
    """It would go on giving one number for each of the old tokens."""
    model = tiny.tiny_classifier("bert", vocab_size=SIZE)
    model.extra = nn.Linear(32, SIZE, bias=False)
    with pytest.raises(MismatchError, match=r"extra\.weight \[70, 32\]"):
        cut_vocabulary(model, KEPT)


def test_a_second_vocabulary_is_refused():
    """Marian may say the decoder's size apart from the encoder's: half of the model would keep the old ids."""
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0, "forced_eos_token_id": 3}
    model = MarianMTModel(
        MarianConfig(
            vocab_size=SIZE,
            decoder_vocab_size=SIZE,
            share_encoder_decoder_embeddings=False,
            tie_word_embeddings=False,
            d_model=32,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            **shape,
            **ids,
        )
    )
    with pytest.raises(MismatchError, match="no config says so"):
        cut_vocabulary(model, KEPT)


@pytest.mark.parametrize("kept", [[], [3, 2], [1, 1, 2], [0, SIZE], [-1, 4]])
def test_ids_that_cannot_be_meant_are_refused(kept):
    """-1 would quietly take the last row."""
    with pytest.raises(MismatchError, match="kept"):
        cut_vocabulary(tiny.tiny_classifier("bert", vocab_size=SIZE), kept)


def test_quantised_and_adapted_models_are_refused():
    """Rows of packed integers are not rows of tokens; an adapter remembers the old shapes."""
    model = tiny.tiny_classifier("bert", vocab_size=SIZE)
    packed = copy.deepcopy(model)
    packed.classifier.weight = nn.Parameter(torch.zeros(3, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(MismatchError, match="quantised"):
        cut_vocabulary(packed, KEPT)
    model.peft_config = {"default": object()}
    with pytest.raises(MismatchError, match="adapter"):
        cut_vocabulary(model, KEPT)
