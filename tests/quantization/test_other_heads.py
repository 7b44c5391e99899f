"""A quantised folder opens with a head that it was not saved with: the head is new and in float."""

import warnings

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_shrink import PruningConfig, QuantizationConfig, prune, quantize
from hf_shrink.loading.save import save
from hf_shrink.quantization.bitsandbytes import skip_names, stored_bits
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import projections
from tests.tiny import ALL_FAMILIES, tiny_config, tiny_inputs

EIGHT = QuantizationConfig(bits=8)


def every_class(config) -> list[type]:
    """All that transformers has for a family, with a head or without."""
    tables = [table for name, table in vars(modeling_auto).items() if name.startswith("MODEL_") and name.endswith("_MAPPING")]
    found = [kind for table in tables if hasattr(table, "get") for kind in [table.get(type(config), None)] if kind]
    several = [kind for kinds in found for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    return sorted({*several}, key=lambda kind: kind.__name__)


def paths(model, names) -> set[str]:
    return {name.removeprefix(f"{model.base_model_prefix}.") if model.base_model is not model else name for name in names}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_of_no_class_is_more_converted_than_was_stored(family):
    """transformers quantises a new head before it has weights: an error deep in torch. Every pair of classes, on meta."""
    built = []
    for kind in every_class(config := tiny_config(family, hidden=64, ffn=128)):
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                built.append(kind(config))
        except AttributeError:
            continue  # a class of another family that takes this one as a part
    plans = [(model, keep_plan(model, EIGHT)) for model in built]
    assert len(plans) > 2
    for source, plan in plans:
        if family == "t5" and not any("decoder." in name for name in plan.quantized):
            continue  # what it lacks is no head
        skipped, stored = skip_names(source, plan.quantized, tuple(plan.kept)), paths(source, plan.quantized)
        assert not any(should_convert_module(name, skipped) for name in plan.kept)
        for target in built:
            converted = [name for name in projections(target) if should_convert_module(name, skipped)]
            assert paths(target, converted) <= stored, f"{type(source).__name__} as {type(target).__name__}"
            both = paths(target, projections(target)) & stored
            assert both <= paths(target, converted), f"{type(source).__name__} as {type(target).__name__}"


HEADS = [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering]
SOURCES = [
    ("bert", AutoModel, 8), ("gpt2", AutoModelForCausalLM, 4), ("llama", AutoModelForCausalLM, 8),
    ("roberta", AutoModelForMaskedLM, 4), ("distilbert", AutoModelForMaskedLM, 8),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "bits"), SOURCES)
@pytest.mark.parametrize("narrow", [False, True])
def test_the_folder_opens_with_another_head(family, kind, bits, narrow, tmp_path):
    model = kind.from_config(tiny_config(family, hidden=64, ffn=128))
    if narrow:  # the record is in our words
        ends = {"gpt2": "0.mlp.c_fc", "llama": "0.mlp.gate_proj", "distilbert": "0.ffn.lin1"}
        model = prune(
            model, PruningConfig(structure="ffn", sparsity=0.5, target_modules=[ends.get(family, "0.intermediate.dense")])
        )
    small = quantize(model, QuantizationConfig(bits=bits))
    assert save(small, tmp_path) == ("plugin" if narrow else "stock")
    inputs = {name: value for name, value in tiny_inputs(family).items() if name in ("input_ids", "attention_mask")}
    for auto in HEADS[: 2 if family == "llama" else 3]:  # LlamaForQuestionAnswering finds no weights, in float neither
        opened = auto.from_pretrained(tmp_path).eval()
        assert paths(opened, stored_bits(opened)) == paths(small, stored_bits(small))
        with torch.no_grad():
            assert opened(**inputs)[0].isfinite().all()
