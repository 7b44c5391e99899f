"""What ONNX Runtime's quantiser makes of weights, foretold. What this prevents: a training for other numbers than a graph
holds, which no later measurement would tell from a training that was of no use."""

import copy

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.loading.onnx_export import export_onnx
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_int8 import int8_graph
from hf_shrink.quantization.onnx_rounding import rounded_product, rounded_table
from hf_shrink.quantization.onnx_size import tables_of
from hf_shrink.quantization.onnx_stored import stored_weights
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.roundings import roundings_of
from hf_shrink.quantization.straight_through import check_exported, weights_as_stored
from hf_shrink.targets import oriented, projections
from tests.tiny import spread, tiny_causal_lm, tiny_classifier, tiny_inputs

ONNX = QuantizationConfig(backend="onnx")
STATIC = QuantizationConfig(backend="onnx", mode="static")
KINDS = [*((tiny_classifier, family) for family in ("bert", "roberta", "distilbert", "electra", "gpt2"))]
KINDS += [(tiny_causal_lm, family) for family in ("gpt2", "llama", "gpt_neox", "qwen2", "qwen3")]


def made(make, family):
    return spread(make(family, layers=1))


def of_graph(weight, table, tmp_path):
    """Both as the installed quantiser stores them."""
    nodes = [
        helper.make_node("Gather", ["t.weight", "ids"], ["x"], name="/t/Gather"),
        helper.make_node("MatMul", ["x", "w.weight"], ["y"], name="/w/MatMul"),
    ]
    ends = [("ids", TensorProto.INT64, ["n"])], [("y", TensorProto.FLOAT, ["n", len(weight)])]
    values = [[helper.make_tensor_value_info(*end) for end in each] for each in ends]
    held = {"w.weight": weight.T.contiguous(), "t.weight": table}
    tensors = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in held.items()]
    graph = helper.make_model(helper.make_graph(nodes, "g", *values, tensors), opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "g.onnx"
    path.write_bytes(int8_graph(graph, ["w"], ["t.weight"], ONNX).SerializeToString())
    found = stored_weights(path)
    return found["w"], found["t"]


@pytest.mark.parametrize("seed", range(8))
def test_matrices_of_every_size_are_rounded_as_the_quantiser_does(seed, tmp_path):
    """Halves between two codes, an output of zeros, numbers whose scale is no normal float: each has a rule of its own."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((9, 8)) * 10.0 ** random.integers(-45, 39, (9, 1))
    weight[0], weight[1] = 0, [64, 0.5, 1.5, -0.5, -1.5, 2.5, 63.5, -62.5]
    weight[2], weight[3] = [0, 0, 0, 0, 0, 0, 0, 1e-44], [64 * 2.0**-126, 2.0**-126, 0, 0, 0, 0, 2.0**-127, 0]
    size = (1.0, 1e-40, 1e-30, 1e30, 5e37, 0.0, 1e-37, 0.3)[seed]
    table = random.standard_normal((6, 8)) * size
    if seed == 0:  # a scale of 1, and numbers in the middle between two codes
        table = random.integers(-200, 310, (6, 8)) * 0.5
        table[0, :2] = [-100, 155]
    one_sided = {1: np.abs(table), 7: -np.abs(table)}.get(seed, table)
    both = [torch.from_numpy(np.clip(array, -3.4e38, 3.4e38).astype(np.float32)) for array in (weight, one_sided)]
    product, lookup = of_graph(*both, tmp_path)
    assert torch.equal(rounded_product(both[0]), product) and torch.equal(rounded_table(both[1]), lookup)
    assert product.any() and (lookup.any() or size < 1e-36)


def test_the_numbers_by_hand():
    """Largest magnitude 128: steps of 2. From -1 to 4: steps of 5/255, and zero is one of them."""
    found = rounded_product(torch.tensor([[128.0, 3.0, 5.0, -1.0, 0.9], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert found.tolist() == [[128.0, 4.0, 4.0, 0.0, 0.0], [0.0] * 5]  # 1.5 and 2.5 go to the even 2, -0.5 to 0
    step = torch.tensor(5 / 255)
    table = rounded_table(torch.tensor([[-1.0, 4.0], [0.0, 0.03]]))
    assert torch.equal(table, torch.tensor([[-51.0, 204.0], [0.0, 2.0]]) * step)


def test_a_rounded_weight_stays_and_none_moves_by_more_than_half_a_step():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    once = rounded_product(weight)
    assert torch.equal(rounded_product(once), once) and not torch.equal(once, weight)
    assert ((once - weight).abs() <= weight.abs().amax(dim=1, keepdim=True) / 128).all()
    table = rounded_table(weight)
    assert (table - weight).abs().max() <= (weight.max() - weight.min()) / 255 * 0.5001
    assert rounded_product(torch.zeros(3, 0)).shape == (3, 0) and rounded_table(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(("make", "family"), KINDS, ids=[f"{make.__name__}-{family}" for make, family in KINDS])
def test_a_graph_holds_what_training_rounds_to_layer_by_layer_and_table_by_table(make, family, tmp_path):
    """A layer more or less, or one turned round: that model was never trained. Square ones show it only in their numbers."""
    model = made(make, family)
    roundings = roundings_of(model, ONNX)
    layers = set(keep_plan(model, ONNX).quantized)
    assert roundings.keys() - layers == {name.removesuffix(".weight") for name in tables_of(model)}
    export_onnx(model, tmp_path, ONNX)
    check_exported(model, tmp_path, roundings)


def test_ranges_by_calibration_and_layers_that_stay_change_nothing_else(tmp_path):
    model = made(tiny_classifier, "bert")
    words = STATIC.model_copy(update={"skip_modules": ("output.dense",)})
    export_onnx(model, tmp_path, words, calibration=[tiny_inputs("bert")])
    roundings = roundings_of(model, words)
    check_exported(model, tmp_path, roundings)
    assert len(roundings_of(model, ONNX)) == len(roundings) + 2


def test_what_the_graph_stores_otherwise_is_seen(tmp_path):
    model = made(tiny_causal_lm, "gpt2")
    export_onnx(model, tmp_path, ONNX)
    roundings = roundings_of(model, ONNX)
    assert "transformer.wpe" in roundings and "transformer.wte" not in roundings  # the output layer's own
    with pytest.raises(IntegrityError, match=r"qat: transformer\.wpe is not both trained and stored"):
        check_exported(model, tmp_path, {name: config for name, config in roundings.items() if name != "transformer.wpe"})
    for name in ("transformer.wpe", "transformer.h.0.attn.c_proj"):
        changed = copy.deepcopy(model)
        changed.get_submodule(name).weight.data[1, 2] += 1
        with pytest.raises(IntegrityError, match=f"qat: {name} is stored as other numbers"):
            check_exported(changed, tmp_path, roundings)


@pytest.mark.parametrize(("make", "family"), [(tiny_classifier, "bert"), (tiny_causal_lm, "gpt2"), (tiny_causal_lm, "llama")])
def test_answers_and_gradients_are_those_of_a_model_that_holds_the_graphs_numbers(make, family, tmp_path):
    """The second implementation: a float model into which the graph's codes times scales are written."""
    model = made(make, family)
    export_onnx(model, tmp_path, ONNX)
    plain, layers = copy.deepcopy(model), projections(model)
    for name, weight in stored_weights(tmp_path / "onnx/model_quantized.onnx").items():
        module = plain.get_submodule(name)
        (oriented(module) if name in layers else module.weight).data.copy_(weight)
    inputs = tiny_inputs(family)
    before = copy.deepcopy(model.state_dict())
    with weights_as_stored(model, roundings_of(model, ONNX)):
        found = model(**inputs).logits
        found.square().sum().backward()
    expected = plain(**inputs).logits
    expected.square().sum().backward()
    exact = {"rtol": 0, "atol": 0} if family != "gpt2" else {"rtol": 1e-4, "atol": 1e-3}  # its own product adds a bias first
    torch.testing.assert_close(found, expected, **exact)
    assert (found - model(**inputs).logits).abs().max() > 1e-3  # outside it is the float model again
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **exact)
        assert torch.equal(ours, before[name])
    table = next(module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    assert table.weight.grad.any() and (table.padding_idx is None or not table.weight.grad[table.padding_idx].any())


def test_what_cannot_be_rounded_is_refused():
    model = made(tiny_classifier, "bert")
    with pytest.raises(RecipeError, match="models of type 'vit' are not exported"):
        roundings_of(tiny_classifier("vit"), ONNX)
    with pytest.raises(RecipeError, match="a graph is of a whole model; pass one config"):
        roundings_of(model, {"bert.encoder.layer.0.output.dense": ONNX})
    with pytest.raises(MismatchError, match="is in bfloat16"):
        roundings_of(made(tiny_classifier, "bert").to(torch.bfloat16), ONNX)
    roundings = roundings_of(model, ONNX)

    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    words = model.bert.embeddings.word_embeddings
    model.bert.embeddings.word_embeddings = Scaled(*words.weight.shape)
    with (
        pytest.raises(MismatchError, match="word_embeddings is read by a kind of Scaled of its own"),
        weights_as_stored(model, roundings),
    ):
        pass
    assert not any("forward" in vars(module) for module in model.modules())
