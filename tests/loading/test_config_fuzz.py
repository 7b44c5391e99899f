"""P10: whatever stands in quantization_config, a model comes out or a ShrinkError, and soon."""

import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shrink import ShrinkConfig, ShrinkError
from hf_shrink.loading.merging import merge
from hf_shrink.loading.shapes import resize
from tests.tiny import tiny_classifier

WORDS = ("pruning", "quantization", "shapes", "bitsandbytes", "head_dim", "format_version", "quant_method", "load_in_8bit")
INSIDE = ("structure", "sparsity", "criterion", "bits", "dtype", "quant_type", "load_in_4bit", "load_in_8bit", "threshold")
INSIDE += ("llm_int8_threshold", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "llm_int8_skip_modules", "allocation")
NAMES = (
    "ffn",
    "heads",
    "magnitude",
    "nf4",
    "fp4",
    "float16",
    "hf_shrink",
    "bitsandbytes",
    "encoder.layer.0.output.dense",
    "..",
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 4, 8, 16, -1, 2**70, 0.5, 6.0, -0.0, float("nan"), float("inf"), *NAMES]),
    st.integers(),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*INSIDE, *NAMES]), inner, max_size=4)
    ),
    max_leaves=8,
)
SIZES = st.sampled_from([1, 8, 32, 64, 0, -1, 2**24, 2**40, 2**70, True, 0.5, "8", None])
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "shapes": st.dictionaries(st.sampled_from(NAMES), st.lists(SIZES, min_size=1, max_size=3), max_size=2),
        "head_dim": SIZES,
    },
)
ANYTHING = st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), VALUES, max_size=5)
CONFIGS = st.one_of(SHAPES, ANYTHING)


@given(CONFIGS, CONFIGS)
@settings(max_examples=400, deadline=None)
def test_p10_only_shrink_errors_and_none_of_them_late(stored, argument):
    read(stored, argument)


@pytest.mark.slow
@given(CONFIGS, CONFIGS)
@settings(max_examples=2000, deadline=None)
def test_p10_in_full(stored, argument):
    read(stored, argument)


def read(stored, argument):
    """What loading does with both configs, on the meta device; any other error or two seconds fail."""
    began = time.process_time()
    try:
        config = ShrinkConfig.from_dict({**stored, "quant_method": stored.get("quant_method", "hf_shrink")})
        assert ShrinkConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
        if config.shapes or config.head_dim is not None:
            with torch.device("meta"):
                resize(tiny_classifier(), config.shapes, config.head_dim)
    except ShrinkError:
        config = ShrinkConfig()
    with suppress(ShrinkError):
        merge(config, {**argument, "quant_method": "hf_shrink"})
    assert time.process_time() - began < 2
