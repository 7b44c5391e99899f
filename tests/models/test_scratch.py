"""Students of other sizes. What these prevent: a size that is accepted and changes nothing, or something else with it."""

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.models.config import StudentConfig
from hf_shrink.models.scratch import from_scratch, resized, sizes_of
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier, tiny_config, tiny_inputs

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize("family", [*FAMILIES, "electra", "gpt_neox", "qwen2", "qwen3"])
def test_a_small_model_has_the_sizes_asked_for_and_the_rest_of_its_config(family):
    """GPT-2 and DistilBERT call their sizes otherwise: a key they do not read would leave the large model."""
    words = SMALL | ({"num_key_value_heads": 1} if family in ("llama", "qwen2", "qwen3") else {})
    words |= {"head_dim": 8} if family == "qwen3" else {}
    start = tiny_classifier(family, layers=3)
    before = start.config.to_dict()
    config = resized(start.config, words)
    torch.manual_seed(0)
    model = from_scratch("text-classification", config)
    wide = {parameter.shape[-1] for name, parameter in model.named_parameters() if "norm" in name.lower() or "ln_" in name}
    assert 16 in wide and not 32 & max(wide)
    assert {24} <= {size for parameter in model.parameters() for size in parameter.shape} and 64 not in {
        size for name, p in model.named_parameters() if "position" not in name and "wpe" not in name for size in p.shape
    }
    assert sizes_of(config, {})["num_hidden_layers"] == 1 and config.id2label == start.config.id2label
    assert config.vocab_size == start.config.vocab_size and start.config.to_dict() == before
    assert model(**tiny_inputs(family)).logits.shape == (2, 3) and model.dtype == torch.float32


def test_tied_embeddings_stay_tied_and_untied_ones_untied():
    for tied in (True, False):
        start = tiny_causal_lm("llama", tie_word_embeddings=tied)
        model = from_scratch("causal-lm", resized(start.config, {"hidden_size": 16}))
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
        assert model.lm_head.weight.shape == (start.config.vocab_size, 16)


def test_heads_follow_the_width_unless_they_had_a_width_of_their_own():
    """Llama's config keeps the old width of a head: attention would be wider than the model."""
    assert resized(tiny_config("llama"), {"hidden_size": 64}).head_dim == 16
    assert resized(tiny_config("llama", head_dim=6), {"hidden_size": 64}).head_dim == 6
    assert resized(tiny_config("llama"), {"hidden_size": 64, "head_dim": 4}).head_dim == 4


def test_what_belongs_to_a_checkpoint_is_left_behind():
    config = tiny_config("qwen2", layers=3)
    config.quantization_config = {"quant_method": "hf_shrink"}
    made = resized(config, {"num_hidden_layers": 1})
    assert len(made.layer_types) == 1 and not hasattr(made, "quantization_config")


@pytest.mark.parametrize(
    ("family", "sizes", "says"),
    [
        ("bert", {"hidden_size": 30}, "hidden_size of 30 cannot be split over 4 heads"),
        ("bert", {"num_key_value_heads": 2}, "BertConfig has no such size"),
        ("llama", {"num_attention_heads": 3, "hidden_size": 33}, "heads cannot share 2"),
        ("llama", {"hidden_size": 20}, "even rotary dimension, but got `head_dim`=5"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(family, sizes, says):
    with pytest.raises(RecipeError, match=says):
        resized(tiny_config(family), sizes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"config": {"hidden_size": 8}}, "config would be ignored"),
        ({"start": "scratch", "layers": 2}, "random layers; write config: {num_hidden_layers"),
        ({"start": "scratch", "config": {"hiden_size": 8}}, "Did you mean 'hidden_size'"),
        ({"start": "scratch", "config": {"hidden_size": 0}}, "greater than or equal to 1|at least 1|>= 1|≥ 1"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        StudentConfig(**words)
