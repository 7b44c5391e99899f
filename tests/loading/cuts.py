"""Models of every family after structured pruning: the stock tier's cut, and one that differs in every layer."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.families import family_of, stacks_of
from hf_shrink.loading.save import record_shapes
from hf_shrink.pruning.hidden import cut_hidden
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.units import units_of
from hf_shrink.repacking import disable_cpu_repacking
from tests.tiny import tiny_classifier, tiny_inputs

TIERS = ("stock", "plugin", "hidden")
"""What plain transformers builds, layers that all differ, and a hidden width narrower than its heads."""


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """With biases, norms and position tables that are not what every new model has, so that a lost one shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def cut(model: PreTrainedModel, tier: str) -> PreTrainedModel:
    """A pruned copy with its record: half of all neurons, other heads and neurons in every layer, or a smaller hidden width."""
    family = family_of(model, "test")
    if tier == "hidden":
        small = cut_hidden(model, chosen(model.config.hidden_size, model.config.hidden_size * 3 // 4, 0))
        record_shapes(small)
        return small
    heads = units_of(model, family, "heads") if tier == "plugin" or family.head_dim else []
    masks = {}
    for index, units in enumerate(heads):
        kept = units.count // 2 if tier == "stock" else (1, max(2, units.count - 1), 2)[index]
        masks[units.name] = chosen(units.count, kept, index)
    for index, units in enumerate(units_of(model, family, "ffn")):
        kept = units.count // 2 if tier == "stock" else units.count // (2 + 2 * index)
        masks[units.name] = chosen(units.count, kept, 100 + index)
    small = shrink(model, masks)
    record_shapes(small)
    return small


def chosen(count: int, kept: int, seed: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:kept]] = True
    return mask


def cut_classifier(family: str, tier: str, **config: Any) -> PreTrainedModel:
    return cut(noisy(tiny_classifier(family, **config)), tier)


def first_output(model: PreTrainedModel, family: str) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    inputs = tiny_inputs(family)
    if family == "t5" and type(model).__name__ in ("T5Model", "T5ForConditionalGeneration"):
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    if family == "vit":
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    realign(model)
    disable_cpu_repacking(model)  # what plain transformers loads computes in bfloat16 there
    with torch.no_grad():
        return model.eval()(**inputs)[0]


def realign(model: PreTrainedModel) -> None:
    """Let float weights start where freshly allocated ones do; between two such places kernels add up in another order."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def assert_same(model: PreTrainedModel, again: PreTrainedModel, family: str, what: str) -> None:
    """Every stored number, its precision, and the outputs, bit by bit."""
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys() and mine, f"{what}: other weights"
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype, f"{what}: {name} is {theirs[name].dtype}"
        assert torch.equal(mine[name], theirs[name]), f"{what}: {name}"
    assert torch.equal(first_output(model, family), first_output(again, family)), f"{what}: logits"


def assert_attributes_fit(model: PreTrainedModel, what: str) -> None:
    """Attention modules say what their projections hold, counted here from the shapes of the weights."""
    seen = 0
    for stack, layers in stacks_of(model, family_of(model, "test")):
        for layer in layers:
            for attention in stack.attentions:
                module = layer.get_submodule(attention.module)
                reader = layer.get_submodule(attention.output)
                features = reader.nx if hasattr(reader, "nx") else reader.in_features
                head_dim = getattr(module, attention.head_dim)
                assert features % head_dim == 0, f"{what}: {attention.output} reads {features} features"
                for name in attention.counts:
                    assert getattr(module, name) == features // head_dim, f"{what}: {attention.module}.{name}"
                for name in attention.widths:
                    assert getattr(module, name) == features, f"{what}: {attention.module}.{name}"
                seen += 1
    assert seen >= 2, "no attention was looked at"
