"""The record in config.json: read back as written, and nothing in it ignored."""

import pytest

from hf_shrink import ShrinkConfig
from hf_shrink.errors import RecipeError

SHAPES = {"encoder.layer.0.output.dense": (40, 32)}
BNB = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["classifier"]}


def test_it_comes_back_from_its_own_dictionary():
    config = ShrinkConfig(SHAPES, bitsandbytes=BNB)
    again = ShrinkConfig.from_dict(config.to_dict())
    assert again.shapes == SHAPES and again.bitsandbytes == BNB and again.to_dict() == config.to_dict()


def test_no_option_of_bitsandbytes_is_at_the_top():
    """transformers takes load_in_8bit there for a plain bitsandbytes checkpoint and forgets the shapes."""
    assert set(ShrinkConfig(SHAPES, bitsandbytes=BNB).to_dict()) == {"quant_method", "format_version", "shapes", "bitsandbytes"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shape": {}}, "unknown key 'shape'. Did you mean 'shapes'"),
        ({"prunning": []}, "unknown key 'prunning'. Did you mean 'pruning'"),
        ({"format_version": 2}, "format_version 2.*pip install -U hf-shrink"),
        ({"quant_method": "gptq"}, "another library's"),
        ({"shapes": {"a": [1]}}, "two whole numbers"),
        ({"shapes": {"a": [0, 4]}}, "two whole numbers"),
        ({"shapes": {"a": [4.0, 4]}}, "two whole numbers"),
        ({"shapes": {"a": [True, 4]}}, "two whole numbers"),
        ({"bitsandbytes": {**BNB, "bnb_4bit_quant_typo": "nf4"}}, "unknown option 'bnb_4bit_quant_typo'"),
        ({"bitsandbytes": {**BNB, "load_in_4bit": True}}, "one of load_in_8bit and load_in_4bit"),
        ({"bitsandbytes": {}}, "one of load_in_8bit and load_in_4bit"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, says):
    with pytest.raises(RecipeError, match=says):
        ShrinkConfig(**given)


def test_transformers_may_add_its_version():
    ShrinkConfig(transformers_version="5.23.0")
