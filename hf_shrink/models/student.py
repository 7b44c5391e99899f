"""Start a student from some of a model's own layers."""

from transformers import PreTrainedModel

from hf_shrink.models.config import StudentConfig
from hf_shrink.pruning.layers import drop_layers, kept_layers

__all__ = ["drop_layers", "kept_layers", "layers_left"]


def layers_left(model: PreTrainedModel, config: StudentConfig) -> PreTrainedModel:
    """``model`` with the layers that ``config`` keeps: a copy with fewer, or the model itself where all stay."""
    return model if config.layers is None else drop_layers(model, config.layers, config.layer_choice)
