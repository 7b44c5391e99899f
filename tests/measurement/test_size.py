"""Counts by hand and by brute force."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.size import disk, held, logical_size, non_zero, parameters, weight_bytes
from hf_shrink.measurement.subjects import Subject
from tests.measurement.quantised import quantised
from tests.tiny import tiny_causal_lm, tiny_classifier

CONFIG = MeasurementConfig()


def counts(model: nn.Module) -> dict[str, float]:
    return {m.name: m.value for m in parameters(Subject("m", model=model), CONFIG)}


def test_bert_s_weights_are_counted_as_by_hand():
    """An off count of parameters is the first number a reader checks."""
    hidden, ffn, layers, words, positions, labels = 32, 64, 2, 20, 64, 3
    embeddings = (words + positions + 2) * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    layer = attention + hidden * ffn + ffn + ffn * hidden + hidden + 2 * hidden
    heads = hidden * hidden + hidden + hidden * labels + labels
    found = counts(tiny_classifier("bert"))
    assert found["parameters"] == embeddings + 2 * hidden + layers * layer + heads
    assert found["parameters_non_embedding"] == found["parameters"] - embeddings


def test_a_shared_weight_counts_once():
    """GPT-2 shares its embedding with its head; counted twice, the embedding would look twice as large."""
    model = tiny_causal_lm("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    unique = {p.data_ptr(): p.numel() for p in model.state_dict().values()}
    assert counts(model)["parameters"] == sum(unique.values())


@pytest.mark.parametrize(
    ("bits", "options"), [(8, {}), (4, {}), (4, {"bnb_4bit_use_double_quant": True}), (4, {"bnb_4bit_quant_type": "nf4"})]
)
def test_quantising_changes_no_count_of_weights(bits, options):
    """Packed 4-bit weights hold two in a byte: counted as stored, the model would seem to have lost half of them."""
    model, small = quantised(bits, **options)
    packed = small.bert.encoder.layer[0].output.dense.weight
    assert packed.numel() != logical_size(packed) or bits == 8
    small_counts, counted = counts(small), counts(model)
    assert small_counts["parameters"] == counted["parameters"]
    assert small_counts["parameters_non_embedding"] == counted["parameters_non_embedding"]


def test_zeros_are_counted_weight_by_weight():
    """Sparsity on the card comes from this count."""
    model = tiny_classifier("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[:5] = 0.0
        model.transformer.h[1].attn.c_attn.weight[2, 3] = -0.0
    brute = sum(value != 0.0 for p in model.parameters() for value in p.detach().flatten().tolist())
    assert non_zero(model) == brute < counts(model)["parameters"]


@pytest.mark.parametrize("options", [{}, {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}])
def test_zeros_of_4_bit_weights_are_those_of_the_unpacked_weights(options):
    """One packed byte is zero only where both of its weights are; counting bytes would hide half of the zeros."""
    _, small = quantised(4, **options)
    code_zeros = 0
    for parameter in small.parameters():
        if getattr(parameter, "quant_state", None) is None:
            continue
        zero = {i for i, value in enumerate(parameter.quant_state.code.tolist()) if value == 0.0}
        packed = parameter.detach().flatten().numpy()
        codes = np.stack([packed >> 4, packed & 15])
        code_zeros += int(np.isin(codes, list(zero)).sum())
    floats = sum(int((p == 0).sum()) for p in small.parameters() if getattr(p, "quant_state", None) is None)
    assert code_zeros > 0
    assert non_zero(small) == counts(small)["parameters"] - code_zeros - floats


def test_zeros_of_8_bit_weights_are_zero_codes():
    """A scale of a row that is forgotten or applied twice does not change which codes are zero."""
    _, small = quantised(8)
    brute = sum(int(np.count_nonzero(p.detach().numpy())) for p in small.parameters())
    assert non_zero(small) == brute


def in_memory(model: nn.Module) -> float:
    return held(Subject("m", model=model), CONFIG)[0].value


def test_bytes_in_memory_are_those_of_the_weights_each_once():
    """A shared embedding counted twice, or the scales of 8 bits left out, makes the saving another one."""
    model = tiny_causal_lm("gpt2")
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert in_memory(model) == 4 * counts(model)["parameters"] + buffers
    assert in_memory(model.bfloat16()) == 2 * counts(model)["parameters"] + sum(b.nbytes for b in model.buffers())
    model, small = quantised(8)
    layers = [module for module in small.modules() if type(module).__name__ == "Linear8bitLt"]
    saved = sum(3 * layer.weight.numel() - 4 * layer.out_features for layer in layers)
    assert layers and in_memory(small) == in_memory(model) - saved
    _, packed = quantised(4)
    assert in_memory(packed) < in_memory(small)


def test_bytes_are_those_of_the_folder_s_own_weight_files(tmp_path):
    """Stages of a run lie below the artefact: counted along, the smallest model would look largest."""
    save_file({"a": torch.zeros(100)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(50)}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "stages").mkdir()
    save_file({"a": torch.zeros(1000)}, tmp_path / "stages" / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("x" * 10_000)
    expected = sum((tmp_path / f"model-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2))
    assert weight_bytes(tmp_path) == expected > 600
    assert [m.value for m in disk(Subject("m", folder=tmp_path), CONFIG)] == [expected]


def test_what_is_not_there_is_not_measured(tmp_path):
    """A size of 0 bytes would be a claim."""
    assert disk(Subject("m", folder=tmp_path), CONFIG) == []
    assert disk(Subject("m"), CONFIG) == []
    assert parameters(Subject("m", folder=tmp_path), CONFIG) == []
