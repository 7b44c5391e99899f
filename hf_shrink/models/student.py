"""Start a student from some of a model's own layers."""

from hf_shrink.pruning.layers import drop_layers, kept_layers

__all__ = ["drop_layers", "kept_layers"]
