"""Start a student from some of a model's own layers."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.models.config import StudentConfig
from hf_shrink.pruning.layers import drop_layers, kept_layers

__all__ = ["drop_layers", "kept_layers", "layers_left"]


def layers_left(
    model: PreTrainedModel, config: StudentConfig, calibration: Sequence[Mapping[str, Tensor]] | None = None
) -> PreTrainedModel:
    """``model`` with the layers that ``config`` keeps: a copy with fewer, or the model itself where all stay.

    Args:
        model: stays as it is.
        config: the recipe's section.
        calibration: batches that the layers are fitted on where ``config`` says so; without, only shapes mean something.

    Raises:
        RecipeError: layers that the model does not have, or nothing to fit: all of them stay.
    """
    if config.layers is None:
        return model
    left = drop_layers(model, config.layers, config.layer_choice, reconstruct=calibration if config.reconstruct else None)
    if config.reconstruct and left.num_parameters() == model.num_parameters():
        raise RecipeError("student.reconstruct would be ignored: student.layers keeps every layer; keep fewer, or remove it.")
    return left
