"""``prune`` and ``quantize`` for users: what they return can be saved with its own ``save_pretrained``, whatever its shapes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.loading.quantizer import ShrinkQuantizer
from hf_shrink.loading.save import record_shapes, write_embeddings
from hf_shrink.loading.shrink_config import ShrinkConfig
from hf_shrink.pruning import oneshot
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.quantization import quantize as quantization
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.targets import projections


def prune(
    model: PreTrainedModel,
    config: PruningConfig | Sequence[PruningConfig],
    calibration: Iterable[Any] | None = None,
    *,
    fractions: Mapping[str, float] | None = None,
) -> PreTrainedModel:
    """A pruned copy of ``model``, at full sparsity at once: smaller for whole units, with zeros for single weights.

    Layers of different widths are recorded in its config, so that its ``save_pretrained`` makes a folder that loads again
    after ``import hf_shrink``.

    Args:
        model: a float transformers model; stays as it is.
        config: one entry or several that do not overlap, without the words that say when.
        calibration: batches (keyword arguments of the forward pass) for criteria that need them; with ``labels`` where
            gradients or labels are read. Padding by ``attention_mask`` does not count.
        fractions: what each mask of an entry with ``allocation: sensitivity`` loses, by the mask's name.

    Raises:
        RecipeError: targets that cannot be meant, or something that would be ignored: a schedule, a calibration nobody needs.
        MismatchError: a model that is quantised already or carries an adapter.
        NonFiniteError: a weight is NaN or infinite.
    """
    _check_model("prune", model)
    return recorded(oneshot.prune(model, config, calibration, fractions))


def quantize(
    model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Mapping[str, Any]] | None = None
) -> PreTrainedModel:
    """A copy of ``model`` stored in fewer bits, in eval mode; ``model`` stays as it is.

    ``save_pretrained`` of the copy writes a folder that plain transformers loads; after ``import hf_shrink`` where layers have
    different widths or, by ``bits: auto``, different numbers of bits. Heads, poolers, tied and unfit layers are kept in float.

    Args:
        model: a model with floating-point weights; layers may have any widths.
        config: how many bits, and what goes with them.
        calibration: batches (keyword arguments of the forward pass), for ``bits: auto`` alone: what each layer loses is
            measured on them.

    Raises:
        RecipeError: no ``QuantizationConfig``, quantised already, nothing is left to quantise, a calibration that is missing or
            that nobody reads, or a budget that nothing meets.
        MismatchError: no transformers model, or one whose weights are computed from others, as by torch.nn.utils.prune.
        NonFiniteError: a weight is NaN or infinite, or too large for the new precision.
        ResourceError: bitsandbytes is missing.
    """
    if not isinstance(config, QuantizationConfig):
        raise RecipeError(f"quantize: config must be a QuantizationConfig, as QuantizationConfig(bits=8); got {config!r:.60}.")
    _check_model("quantize", model)
    return recorded(quantization.quantize(model, config, calibration))


def _check_model(what: str, model: Any) -> None:
    """Refuse what would fail further down, in other people's words."""
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise MismatchError(f"{what}: expected a transformers PreTrainedModel, got {type(model).__name__}.")
    if odd := [name for name, layer in projections(model).items() if "weight" not in layer._parameters]:
        raise MismatchError(
            f"{what}: the weight of {odd[0]} is computed from other parameters, in {len(odd)} layers in all.\n"
            "Make it a weight again: torch.nn.utils.prune.remove(module, 'weight'), or parametrize.remove_parametrizations."
        )


def recorded(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` itself; its config now says what its feed-forward layers look like, where a stock config cannot."""
    record_shapes(model)
    if stored_bits(model):  # its own dequantize() asks the quantizer: transformers' gives GPT-2 layers of another kind
        stored = model.config.quantization_config
        ours = stored if isinstance(stored, ShrinkConfig) else ShrinkConfig(bitsandbytes=stored.to_dict())
        quantizer = ShrinkQuantizer(ours, pre_quantized=True)
        setattr(model, "hf_quantizer", quantizer)  # noqa: B010 - nn.Module types attributes as tensors
    write_embeddings(model)
    return model
