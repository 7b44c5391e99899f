"""The plan: what must stay precise stays, and every machine decides alike."""

import pytest
import torch
from torch import nn
from transformers import BertModel

from hf_shrink.errors import RecipeError
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.plan import keep_plan
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier, tiny_config

EIGHT, FOUR = QuantizationConfig(bits=8), QuantizationConfig(bits=4)


@pytest.mark.parametrize(
    ("family", "count", "kept"),
    [
        ("bert", 12, {"bert.pooler.dense": "pooler", "classifier": "task head"}),
        ("roberta", 12, {"classifier.dense": "task head", "classifier.out_proj": "task head"}),
        ("distilbert", 12, {"pre_classifier": "task head", "classifier": "task head"}),
        ("gpt2", 8, {"score": "task head"}),
        ("llama", 14, {"score": "task head"}),
    ],
)
def test_all_of_the_layers_are_quantised_and_none_of_the_head(family, count, kept):
    """A head quantised while it is new fails deep inside the kernels; a trained one costs accuracy for a few bytes."""
    plan = keep_plan(tiny_classifier(family), EIGHT)
    assert len(plan.quantized) == count and plan.kept == kept


def test_tied_ends_are_kept_and_their_other_end_is_named():
    """Quantising one end of a tie unties it, or changes the embeddings along."""
    assert keep_plan(tiny_causal_lm("gpt2"), EIGHT).kept == {"lm_head": "tied to transformer.wte"}


def test_an_untied_output_layer_is_kept():
    assert keep_plan(tiny_causal_lm("llama", tie_word_embeddings=False), EIGHT).kept == {"lm_head": "task head"}


def test_a_headless_model_keeps_its_pooler():
    assert keep_plan(BertModel(tiny_config("bert")), EIGHT).kept == {"pooler.dense": "pooler"}


def test_four_bits_keep_widths_that_are_no_multiple_of_64():
    """The AVX512 kernel is silently wrong for them; a plan that asked the machine would make other files elsewhere."""
    plan = keep_plan(tiny_classifier(hidden=64, ffn=96), FOUR)
    unfit = [name for name, reason in plan.kept.items() if reason == "in_features not a multiple of 64"]
    assert unfit == ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.dense"]
    assert len(keep_plan(tiny_classifier(hidden=64, ffn=96), EIGHT).quantized) == 12


def test_conv1d_is_measured_by_its_inputs_not_by_its_first_axis_of_outputs():
    kept = keep_plan(tiny_classifier("gpt2", hidden=64, ffn=96), FOUR).kept
    assert [n for n in kept if n != "score"] == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]


def test_skip_modules_match_whole_dotted_ends():
    config = QuantizationConfig(bits=8, skip_modules=("0.output.dense", "value"))
    kept = [n for n, reason in keep_plan(tiny_classifier(), config).kept.items() if reason == "named in skip_modules"]
    assert kept == [
        "bert.encoder.layer.0.attention.self.value",
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.attention.self.value",
    ]


def test_a_skip_pattern_that_names_nothing_is_an_error():
    """A typo would quantise what was to be spared."""
    with pytest.raises(RecipeError, match="'quary' matches 0 of 14 modules; nearest: query"):
        keep_plan(tiny_classifier(), QuantizationConfig(bits=8, skip_modules=("quary",)))


def test_nothing_left_to_quantise_is_an_error():
    with pytest.raises(RecipeError, match=r"0 of 14 layers are left to quantise .*not a multiple of 64"):
        keep_plan(tiny_classifier(hidden=32, ffn=32), FOUR)


def test_a_subclass_of_linear_is_kept_because_transformers_would_skip_it():
    class Special(nn.Linear):
        pass

    model = tiny_classifier()
    model.bert.encoder.layer[0].output.dense = Special(64, 32)
    assert keep_plan(model, EIGHT).kept["bert.encoder.layer.0.output.dense"] == "a kind of Linear of its own"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [EIGHT, FOUR], ids=["8", "4"])
def test_the_plan_needs_no_weights(family, config):
    with torch.device("meta"):
        model = tiny_classifier(family, hidden=64)
    assert keep_plan(model, config) == keep_plan(tiny_classifier(family, hidden=64), config)


def test_casting_quantises_no_layer():
    plan = keep_plan(tiny_classifier(), QuantizationConfig(bits=16, dtype="bfloat16"))
    assert plan.quantized == () and plan.kept == {}
