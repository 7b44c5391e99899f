"""Make Transformers models several times smaller while they are fine-tuned, and prove it."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hf_shrink.loading.register import register_when_needed

if TYPE_CHECKING:
    from hf_shrink.distillation.config import DistillationConfig, LossTerm
    from hf_shrink.errors import ShrinkError
    from hf_shrink.loading.dequantize import dequantize
    from hf_shrink.loading.oneshot import prune, quantize
    from hf_shrink.loading.onnx_export import export_onnx
    from hf_shrink.loading.save import save
    from hf_shrink.loading.shrink_config import ShrinkConfig
    from hf_shrink.measurement.compare import compare
    from hf_shrink.measurement.measure import measure
    from hf_shrink.onnx_model import OnnxModel
    from hf_shrink.pipeline import run
    from hf_shrink.pruning.config import PruningConfig
    from hf_shrink.publishing.push import push
    from hf_shrink.quantization.config import QuantizationConfig
    from hf_shrink.recipe import Recipe
    from hf_shrink.training.trainer import ShrinkTrainer

__version__ = version("hf-shrink")

# Public name -> its module, imported when the name is first used: `import hf_shrink` leaves torch and transformers alone.
_HOMES = {
    "DistillationConfig": "hf_shrink.distillation.config",
    "LossTerm": "hf_shrink.distillation.config",
    "OnnxModel": "hf_shrink.onnx_model",
    "PruningConfig": "hf_shrink.pruning.config",
    "QuantizationConfig": "hf_shrink.quantization.config",
    "Recipe": "hf_shrink.recipe",
    "ShrinkConfig": "hf_shrink.loading.shrink_config",
    "ShrinkError": "hf_shrink.errors",
    "ShrinkTrainer": "hf_shrink.training.trainer",
    "compare": "hf_shrink.measurement.compare",
    "dequantize": "hf_shrink.loading.dequantize",
    "export_onnx": "hf_shrink.loading.onnx_export",
    "measure": "hf_shrink.measurement.measure",
    "prune": "hf_shrink.loading.oneshot",
    "push": "hf_shrink.publishing.push",
    "quantize": "hf_shrink.loading.oneshot",
    "run": "hf_shrink.pipeline",
    "save": "hf_shrink.loading.save",
}

__all__ = [
    "DistillationConfig",
    "LossTerm",
    "OnnxModel",
    "PruningConfig",
    "QuantizationConfig",
    "Recipe",
    "ShrinkConfig",
    "ShrinkError",
    "ShrinkTrainer",
    "compare",
    "dequantize",
    "export_onnx",
    "measure",
    "prune",
    "push",
    "quantize",
    "run",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_shrink' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # once found, it is an attribute like any other
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register_when_needed()
