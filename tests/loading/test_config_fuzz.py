"""P10: whatever stands in quantization_config, a model comes out or a ShrinkError, and soon."""

import json
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_shrink import QuantizationConfig, ShrinkConfig, ShrinkError, quantize
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError
from hf_shrink.headers import check_storage
from hf_shrink.inspection import inspect_model
from hf_shrink.loading.merging import merge
from hf_shrink.loading.save import save
from hf_shrink.loading.shapes import resize
from tests.tiny import tiny_classifier

WORDS = ("pruning", "quantization", "shapes", "bitsandbytes", "head_dim", "format_version", "quant_method", "load_in_8bit")
WORDS += ("embeddings", "eight_bits", "llm_int8_skip_modules")
INSIDE = ("structure", "sparsity", "criterion", "bits", "dtype", "quant_type", "load_in_4bit", "load_in_8bit", "threshold")
INSIDE += ("llm_int8_threshold", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "llm_int8_skip_modules", "allocation")
INSIDE += ("layers", "embeddings")
NAMES = (
    "ffn",
    "heads",
    "magnitude",
    "nf4",
    "fp4",
    "float16",
    "hf_shrink",
    "bitsandbytes",
    "int8",
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    save(quantize(tiny_classifier("bert", layers=1), QuantizationConfig(bits=8, embeddings="int8")), path)
    return path


@given(st.one_of(VALUES, ANYTHING, ANYTHING.map(lambda words: {**words, "quant_method": "hf_shrink"})))
@example("int8")
@example(["a"])
@example(5)
@example({"bitsandbytes": "x", "quant_method": "hf_shrink"})
@example({"bitsandbytes": {"load_in_8bit": True, "llm_int8_skip_modules": 5}, "quant_method": "hf_shrink"})
@example({"load_in_8bit": True, "llm_int8_skip_modules": ["("]})
@settings(max_examples=150, deadline=None)
def test_p10_what_looks_into_a_folder(folder, record):
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**words, "quantization_config": record}))
    for look in (inspect_model, lambda name: check_storage("folder", record, folder)):
        with suppress(ShrinkError):
            look(str(folder))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("int8", "must be an object with keys; got 'int8'"),
        ({"quant_method": "hf_shrink", "bitsandbytes": "x"}, "bitsandbytes must be an object with keys; got 'x'"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": 5}, "must be a list of names; got 5"),
        ({"quant_method": "hf_shrink", "format_version": 2, "bitsandbytes": {"load_in_8bit": True}}, "format_version 2"),
        ({"quant_method": "hf_shrink", "embeddings": "int4", "bitsandbytes": {"load_in_8bit": True}}, "embeddings 'int4'"),
    ],
)
def test_inspect_reads_no_more_than_from_pretrained(record, says, folder):
    """A newer format was shown as if it were this one; what is no record at all ended in an AttributeError."""
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**words, "quantization_config": record}))
    with pytest.raises(IntegrityError, match=says):
        inspect_model(str(folder))
    for command in (["measure", str(folder)], ["quantize", str(folder), str(folder / "new")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code in (2, 3, 5) and "unexpected" not in done.stderr, (command, done.stderr)


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
