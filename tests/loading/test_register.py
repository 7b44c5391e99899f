"""Registration: in either import order, once, and without importing transformers for it."""

import subprocess
import sys
from typing import get_type_hints

import pytest

import hf_shrink

ASK = """
import inspect, sys, transformers.quantizers.auto as auto
assert auto.AUTO_QUANTIZER_MAPPING["hf_shrink"].__name__ == "ShrinkQuantizer"
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["hf_shrink"].__name__ == "ShrinkConfig"
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("hf_shrink")], "the hook is still there"
assert "AUTO_QUANTIZER_MAPPING" in inspect.getsource(auto), "the module has lost its loader"
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "order",
    [
        "import hf_shrink; import transformers.quantizers",
        pytest.param("import transformers.quantizers; import hf_shrink", marks=pytest.mark.slow),
        pytest.param("import hf_shrink.loading.quantizer", marks=pytest.mark.slow),
        "import hf_shrink, importlib, sys; importlib.reload(hf_shrink); del sys.modules['hf_shrink']; import hf_shrink;"
        "import transformers.quantizers; importlib.reload(hf_shrink);"
        "importlib.reload(sys.modules['hf_shrink.loading.quantizer'])",
    ],
)
def test_every_import_order_registers_once_and_leaves_no_hook_behind(order):
    """Not registered, transformers warns, ignores the shapes and dies over sizes."""
    done = python(f"{order}\n{ASK}")
    assert done.returncode == 0, done.stderr


def test_import_leaves_torch_and_transformers_alone():
    """A command line that loads torch to print its help takes seconds."""
    done = python(
        "import hf_shrink, sys; dir(hf_shrink); print(sorted({'torch', 'transformers', 'bitsandbytes'} & {*sys.modules}))"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_is_there_and_the_type_checker_sees_the_same_ones():
    for name in hf_shrink.__all__:
        assert getattr(hf_shrink, name).__module__ == hf_shrink._HOMES[name], name
    assert sorted(hf_shrink._HOMES) == hf_shrink.__all__ and set(hf_shrink.__all__) <= set(dir(hf_shrink))
    assert get_type_hints(hf_shrink.quantize)["config"] is hf_shrink.QuantizationConfig


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'squeeze'"):
        _ = hf_shrink.squeeze


def test_the_version_is_the_installed_one():
    assert hf_shrink.__version__[0].isdigit()
