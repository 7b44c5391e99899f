"""Which layers are quantised, and why the others are not: decided before any weight is touched, also without weights."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_shrink.errors import RecipeError
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.targets import matches, projections, select

KEPT = "kept_in_high_precision"
"""Key of ``config.json``: layer -> why it is not quantised."""


@dataclass(frozen=True)
class Plan:
    """What quantisation does to each projection.

    Attributes:
        quantized: names of the layers stored in fewer bits, in the model's order.
        kept: name -> reason of every other ``nn.Linear`` and ``Conv1D``.
    """

    quantized: tuple[str, ...]
    kept: Mapping[str, str]


def keep_plan(model: PreTrainedModel, config: QuantizationConfig, new: Collection[str] = ()) -> Plan:
    """Sort every projection of ``model`` (on any device, also meta) into quantised and kept.

    The answer depends on the model and the config alone, never on the machine: an artefact made elsewhere is the same.

    Args:
        model: of any family.
        config: how many bits; 16 keeps and quantises nothing; auto takes what 8 bits take, of which some are kept later.
        new: projections that no file holds weights for, where ``model`` is being loaded.

    Raises:
        RecipeError: a pattern of ``skip_modules`` names nothing, or nothing is left to quantise.
    """
    if config.bits == 16:
        return Plan((), {})
    if config.bits == "auto":
        return keep_plan(model, config.at(8), new)
    layers = projections(model)
    asked = select(layers, config.skip_modules, (), "quantization.skip_modules") if config.skip_modules else {}
    precise = list(model._keep_in_fp32_modules or ())
    tied, outputs = _shared(model), set(get_keys_to_not_convert(model))
    unfit = backend_for(config.bits).unfit
    kept: dict[str, str] = {}
    for name, layer in layers.items():
        reason = (
            ("named in skip_modules" if name in asked else None)
            or (f"tied to {tied[name]}" if name in tied else None)
            or _role(name, model, outputs)
            or ("kept in float32 by its class" if not should_convert_module(name, precise) else None)
            or ("newly initialised" if name in new else None)
            or ("a kind of Linear of its own" if type(layer) is not nn.Linear and not isinstance(layer, Conv1D) else None)
            or unfit(layer, config)
        )
        if reason is not None:
            kept[name] = reason
    quantized = tuple(name for name in layers if name not in kept)
    if not quantized:
        why = "; ".join(f"{count} {reason}" for reason, count in Counter(kept.values()).most_common(4))
        raise RecipeError(f"quantization: 0 of {len(layers)} layers are left to quantise ({why or 'the model has none'}).")
    return Plan(quantized, kept)


def _role(name: str, model: PreTrainedModel, outputs: set[str]) -> str | None:
    """Why a layer matters more than the bytes it would save, from where it stands in the model."""
    base = model.base_model
    if base is not model and not name.startswith(f"{model.base_model_prefix}."):
        return "task head"
    if any("pooler" in part for part in name.split(".")):
        return "pooler"
    return "output layer" if any(matches(name, output) for output in outputs) else None


def _shared(model: nn.Module) -> dict[str, str]:
    """Layers whose weight is also someone else's, with one such other."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)].append(name)
    return {
        name: others[0] if others[0] != name else others[1] for others in owners.values() if len(others) > 1 for name in others
    }
