"""``bits: auto``: losses measured one layer at a time, bytes spent where they are worth most, and the original put back."""

import copy
import io
import itertools

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from hf_shrink.errors import RecipeError
from hf_shrink.loading.oneshot import quantize as quantize_recorded
from hf_shrink.loading.save import save
from hf_shrink.loading.verify import verify
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.bitsandbytes import restored, stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.knapsack import Option, cheapest, path, spend
from hf_shrink.quantization.mixed import expected_bytes, least_and_most, quantize_mixed, store_mixed
from hf_shrink.quantization.mixed_table import LayerBits, MixedPlan, Trade
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.quantize import quantize, quantize_by_budget
from hf_shrink.quantization.size import bytes_with
from hf_shrink.targets import oriented
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier

IDS = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.tensor([0, 1])}]


def auto(**budget) -> QuantizationConfig:
    return QuantizationConfig(bits="auto", budget=budget)


def wide(family: str = "bert", **more):
    """Weights large enough that rounding shows in the answers."""
    model = tiny_classifier(family, hidden=64, ffn=128, **more).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


OPTIONS = {
    "a": (Option(4, 10, 8.0), Option(8, 20, 1.0), Option(16, 60, 0.0)),
    "b": (Option(4, 10, 3.0), Option(8, 20, 2.9), Option(16, 40, 0.0)),
    "c": (Option(8, 15, 0.5), Option(16, 45, 0.0)),
}


def test_the_knapsack_by_hand():
    """Worth a byte: a to 8 is 0.7, b straight to float 0.1 (8 bits lie above the hull), a to float 0.025, c 0.0167."""
    assert {name: option.bits for name, option in cheapest(OPTIONS).items()} == {"a": 4, "b": 4, "c": 8}
    widths = [{name: option.bits for name, option in choice.items()} for choice in path(OPTIONS)]
    assert [tuple(w.values()) for w in widths] == [(4, 4, 8), (8, 4, 8), (8, 16, 8), (16, 16, 8), (16, 16, 16)]
    spent = {most: tuple(option.bits for option in spend(OPTIONS, most).values()) for most in (35, 44, 45, 75, 114, 145)}
    assert spent == {35: (4, 4, 8), 44: (4, 4, 8), 45: (8, 4, 8), 75: (8, 16, 8), 114: (8, 16, 16), 145: (16, 16, 16)}


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_within_its_bound_of_the_best_choice_and_within_the_budget(seed):
    """Every choice, tried: a step that skips its hull or overspends would break one of the two."""
    draw = torch.Generator().manual_seed(seed)
    options = {}
    for i in range(6):
        sizes = torch.randint(1, 60, (3,), generator=draw).cumsum(0).tolist()
        losses = torch.rand(3, generator=draw).sort(descending=True).values.tolist()
        options[str(i)] = tuple(map(Option, (4, 8, 16), sizes, losses))
    floor = sum(option.bytes for option in cheapest(options).values())
    for most in range(floor, floor + 200, 17):
        found = spend(options, most)
        assert sum(option.bytes for option in found.values()) <= most
        best = min(
            sum(o.kl for o in choice) for choice in itertools.product(*options.values()) if sum(o.bytes for o in choice) <= most
        )
        largest = max(o.kl - p.kl for each in options.values() for o, p in itertools.combinations(each, 2))
        assert best <= sum(option.kl for option in found.values()) + 1e-9 <= best + largest + 1e-8


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_in_place_is_what_the_stored_layer_multiplies_by(family, bits):
    """Losses of other numbers than the stored ones would choose wrongly."""
    model, config = wide(family), QuantizationConfig(bits=bits)
    small, backend = quantize(model, config), backend_for(bits)
    for name in keep_plan(model, config).quantized:
        ours = backend.rounded(oriented(model.get_submodule(name)), config)
        assert torch.equal(ours, restored(small.get_submodule(name))), name


def test_the_divergence_is_the_kl_of_what_counts():
    """Padding that counts would drown the answers; the order of the arguments is that of KL(float || changed)."""
    model, other = (
        tiny_causal_lm("llama", hidden=64, ffn=128).eval(),
        tiny_causal_lm("llama", hidden=64, ffn=128, seed=1).eval(),
    )
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"input_ids": IDS, "attention_mask": mask}
    reference = Divergence(model, [batch])
    with torch.no_grad():
        ours, theirs = (F.log_softmax(m(**batch).logits, dim=-1) for m in (model, other))
    kl = F.kl_div(theirs, ours, log_target=True, reduction="none").sum(-1)[mask.bool()].mean()
    assert reference.positions == 8 and reference.of(model) == 0.0
    assert reference.of(other) == pytest.approx(kl.item(), rel=1e-5) and kl > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_layers_of_4_8_and_float_bits_reload_bit_for_bit_in_the_predicted_bytes(family, dtype, tmp_path):
    """Two quantizers in one model: a tensor of the one read by the other gives another model, or none."""
    config = QuantizationConfig(bits="auto", budget={"bits_per_weight": 8.0}, **({} if dtype is None else {"dtype": dtype}))
    model = wide(family)
    plan = keep_plan(model, config)
    bits = {name: (4, 8, 16)[i % 3] for i, name in enumerate(plan.quantized)}
    small = store_mixed(model, config, plan, bits)
    assert stored_bits(small) == {name: width for name, width in bits.items() if width < 16}
    assert save(small, tmp_path / "one") == "plugin"
    verify(tmp_path / "one", small, {"input_ids": IDS})
    again = type(model).from_pretrained(tmp_path / "one")
    save(again, tmp_path / "two")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    real = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert bytes_with(model, config, bits) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_a_layer_loses_is_measured_alone_and_the_model_stays_as_it_was(family):
    """A layer that is not put back makes every later loss larger; one that is put back by a copy is no longer tied."""
    model = wide(family).train()
    before, ids = copy.deepcopy(model.state_dict()), {name: id(p) for name, p in model.named_parameters()}
    mixed = quantize_mixed(model, auto(bits_per_weight=6.5), BATCHES)
    assert model.training and {name: id(p) for name, p in model.named_parameters()} == ids
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {layer.bits for layer in mixed.plan.layers} == {4, 8}
    weights = sum(model.get_submodule(layer.name).weight.numel() for layer in mixed.plan.layers)
    assert sum(layer.bytes for layer in mixed.plan.layers) * 8 <= 6.5 * weights
    last = mixed.plan.layers[-1]
    alone = copy.deepcopy(model).eval()
    rounded = backend_for(4).rounded(oriented(alone.get_submodule(last.name)), QuantizationConfig(bits=4))
    oriented(alone.get_submodule(last.name)).data.copy_(rounded)
    assert last.kl_4 == pytest.approx(Divergence(model, BATCHES).of(alone), rel=1e-6) and last.kl_4 > 0


def test_after_a_training_in_16_bits_losses_are_those_of_the_stored_model():
    """Under the training's autocast the KL of most layers was its rounding, or 0, and bits went by that."""
    model, config = wide(), auto(bits_per_weight=6.5)
    expected, own = quantize_by_budget(model, config, BATCHES).plan, model.forward

    def half(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return own(*args, **kwargs)

    model._original_forward, model.forward = own, half  # as accelerate leaves it
    found = quantize_by_budget(model, config, BATCHES)
    assert found.plan == expected and "forward" not in vars(found.model) and model.forward is half


def test_the_decision_is_in_the_config_after_a_reload(tmp_path):
    small = quantize_mixed(model := wide(), auto(bits_per_weight=6.5), BATCHES)
    save(small.model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.layer_bits == small.plan.record() and "nats in 4 bits" in str(again.config.layer_bits)


def test_a_budget_of_bytes_is_kept_and_predicted_from_shapes(tmp_path):
    model = wide(layers=4)
    least, most = least_and_most(model, auto(bytes=1))
    budget = (least + most) // 2
    mixed = quantize_mixed(model, auto(bytes=budget), BATCHES)
    save(mixed.model, tmp_path)
    real = (tmp_path / "model.safetensors").stat().st_size
    step = max(layer.weight.numel() for _, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)) * 4
    assert budget - step <= real <= budget and expected_bytes(model, auto(bytes=budget)) == budget


def test_a_floor_of_quality_is_kept_by_the_model_as_it_is_stored():
    model = wide(layers=4)
    fewest = quantize_mixed(model, auto(bytes=10**9), BATCHES).plan.measured["fewest bits"].kl
    mixed = quantize_mixed(model, auto(max_kl=fewest / 4), BATCHES)
    reference = Divergence(model, BATCHES)
    assert 0 < reference.of(mixed.model) <= fewest / 4
    assert mixed.plan.measured["chosen"].kl == reference.of(mixed.model)
    assert mixed.plan.measured["chosen"].bytes < least_and_most(model, auto(bytes=1))[1]


def test_dequantising_a_mixed_model_gives_back_both_kinds(tmp_path):
    """transformers' own 4-bit quantizer would leave the 8-bit layers as they are."""
    small = quantize_recorded(wide("gpt2"), auto(bits_per_weight=7.0), BATCHES)
    assert {*stored_bits(small).values()} == {4, 8}
    small.save_pretrained(tmp_path)
    expected = {name: restored(small.get_submodule(name)) for name in stored_bits(small)}
    for model in (small, type(small).from_pretrained(tmp_path)):
        model.dequantize(dtype=torch.float32)
        assert not any(isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) for m in model.modules())
        assert all(torch.equal(oriented(model.get_submodule(name)), weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"bits": "auto"}, "needs a budget"),
        ({"bits": 8, "budget": {"bytes": 5}}, "budget would be ignored with bits: 8"),
        ({"bits": "auto", "budget": {"bytes": 5, "max_kl": 0.1}}, "needs one of bytes, bits_per_weight, max_kl"),
        ({"bits": "auto", "budget": {}}, "got none"),
        ({"bits": 4, "calibration_rows": 8}, "calibration_rows would be ignored with bits: 4"),
        ({"backend": "onnx", "bits": "auto", "budget": {"bytes": 5}}, "onnx stores 8 bits"),
        ({"bits": "auto", "budget": {"bytes": 5}, "calibration_rows": 2000}, "512"),  # a run reads no more
    ],
)
def test_words_that_would_be_ignored_are_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        QuantizationConfig(**words)


def test_what_cannot_be_done_is_refused_with_the_way_out():
    model = wide()
    with pytest.raises(RecipeError, match=r"take [\d,]+ bytes; give at least that"):
        quantize(model, auto(bytes=1000), BATCHES)
    with pytest.raises(RecipeError, match=r"take [45]\.\d\d bits_per_weight"):
        quantize(model, auto(bits_per_weight=2.0), BATCHES)
    with pytest.raises(RecipeError, match="give batches as calibration"):
        quantize(model, auto(bytes=10**6))
    with pytest.raises(RecipeError, match="calibration would be ignored with bits: 8"):
        quantize(model, QuantizationConfig(bits=8), BATCHES)
    numbers = tiny_classifier(hidden=64, ffn=128, num_labels=1)
    with pytest.raises(RecipeError, match="no probabilities to compare"):
        quantize(numbers, auto(bytes=10**6), BATCHES)


def test_each_layer_is_a_line_of_80_columns():
    """Names over several lines, cut anywhere, cannot be looked for."""
    names = [f"bert.encoder.layer.{i}.{part}" for i in (0, 11) for part in ("attention.output.dense", "output.dense")]
    layers = tuple(LayerBits(name, 4, 154_389_504, 1.25e-4, None) for name in names)
    plan = MixedPlan(layers, {}, (), {"chosen": Trade(10**9, 1.0)}, 16)
    for width, first in ((80, "b.e.l.0.a.output.dense"), (120, names[0])):
        console = Console(width=width, file=io.StringIO())
        console.print(plan.rich())
        lines = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
        assert len({line.split()[1] for line in lines}) == len(lines) == 4 and max(map(len, lines)) <= width
        assert lines[0].split()[1::2] == [first, "4", "154,389,504", "1.25e-04", "-"]
