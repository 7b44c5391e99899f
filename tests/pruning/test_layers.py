"""Which layers leave: scores by hand, counts, and what a layer does to the tokens that flow through it."""

import copy
import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import family_of, layers_of, stacks_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.influence import block_influence
from hf_shrink.pruning.layers import drop_layers, layers_to_keep
from hf_shrink.targets import projections
from tests import tiny


def cut(sparsity: float = 0.5, criterion: object = "magnitude") -> PruningConfig:
    return PruningConfig(structure="layers", sparsity=sparsity, criterion=criterion)


def with_block_influence(sparsity: float = 0.5) -> PruningConfig:
    return cut(sparsity).model_copy(update={"criterion": "block_influence"})


def layers(model):
    return layers_of(model, family_of(model, "test"))


def scale(layer, factor: float) -> None:
    with torch.no_grad():
        for module in projections(layer).values():
            module.weight.mul_(factor)


def batch(family: str, rows: int = 3) -> dict[str, torch.Tensor]:
    return tiny.tiny_inputs(family, rows=rows)


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("criterion", ["magnitude", "magnitude_l2"])
def test_the_layers_with_the_smallest_weights_leave(family, criterion):
    """High is keep: with the sign turned round the best layers would leave, and training would hide it."""
    model = tiny.tiny_classifier(family, layers=5)
    for index, factor in enumerate([1.0, 0.3, 2.0, 0.5, 3.0]):
        for _, found in stacks_of(model, family_of(model, "test")):
            scale(found[index], factor)
    assert layers_to_keep(model, cut(0.4, criterion), "pruning.0") == (0, 2, 4)
    assert layers_to_keep(model, cut(0.6, criterion), "pruning.0") == (0, 4) if family == "t5" else (2, 4)


def test_a_layer_is_not_worth_more_for_its_size():
    """A sum would keep the widest layer: here layer 1 has more and smaller weights, and a larger sum."""
    model = tiny.tiny_classifier(layers=2)
    wide = tiny.tiny_classifier(layers=2, ffn=256)
    scale(layers(wide)[1], 0.6)
    model.bert.encoder.layer[1] = layers(wide)[1]
    sums = [sum(float(m.weight.detach().abs().sum()) for m in projections(layer).values()) for layer in layers(model)]
    assert sums[0] < sums[1]
    assert layers_to_keep(model, cut(), "pruning.0") == (0,)


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"), [(6, 0.5, 3), (6, 0.25, 4), (6, 1 / 3, 4), (12, 0.9, 1), (4, 0.0, 4), (5, 0.5, 3)]
)
def test_as_many_leave_as_the_fraction_says(total, sparsity, kept):
    model = tiny.tiny_classifier(layers=total, hidden=8, ffn=8)
    found = layers_to_keep(model, cut(sparsity), "pruning.0")
    assert len(found) == kept and list(found) == sorted(set(found))
    assert len(layers(drop_layers(model, found))) == kept


@pytest.mark.parametrize(
    ("sparsity", "says"),
    [
        (0.9, r"pruning\.1\.sparsity.*0\.9 removes 3 of 3 layers; at least 1 must stay"),
        (0.1, r"keeps all 3 layers; 1 .*0\.333"),
    ],
)
def test_keeping_none_or_all_is_refused(sparsity, says):
    """Rounding would leave a model without a layer, or the whole model while the report says pruned."""
    with pytest.raises(RecipeError, match=says):
        layers_to_keep(tiny.tiny_classifier(layers=3), cut(sparsity), "pruning.1")


def test_random_is_the_same_each_time_and_looks_at_no_weight():
    model = tiny.tiny_classifier(layers=8, hidden=8, ffn=8)
    found = layers_to_keep(model, cut(0.5, "random"), "pruning.0")
    for layer in layers(model):
        scale(layer, float(torch.rand(())))
    assert layers_to_keep(model, cut(0.5, "random"), "pruning.0") == found and len(found) == 4


def test_a_function_of_the_user_scores():
    model = tiny.tiny_classifier(layers=3)
    for index, layer in enumerate(layers(model)):
        with torch.no_grad():
            layer.output.dense.weight[0, 0] = (5.0, -5.0, 1.0)[index]
    kept = layers_to_keep(model, cut(1 / 3, lambda weight, stats: weight.detach().clamp(min=4)), "pruning.0")
    assert 0 in kept and len(kept) == 2


def test_a_criterion_that_reads_gradients_gets_them_from_the_batches():
    """snip is |w * g|; layer by layer it is what one backward by hand gives."""
    model, inputs = tiny.tiny_classifier(layers=3), batch("bert") | {"labels": torch.tensor([0, 1, 2])}
    by_hand = copy.deepcopy(model)
    by_hand(**inputs).loss.backward()
    means = [
        torch.cat([(m.weight * m.weight.grad).abs().flatten() for m in projections(layer).values()]).mean().item()
        for layer in layers(by_hand)
    ]
    best = sorted(range(3), key=means.__getitem__)[1:]
    assert layers_to_keep(model, cut(1 / 3, "snip"), "pruning.0", [inputs]) == tuple(sorted(best))
    with pytest.raises(RecipeError, match="snip needs batches"):
        layers_to_keep(model, cut(1 / 3, "snip"), "pruning.0")


def test_weights_that_are_not_finite_are_refused_by_name():
    """A NaN sorts somewhere: a layer would leave for no reason."""
    model = tiny.tiny_classifier()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"layer\.1\.output\.dense"):
        layers_to_keep(model, cut(), "pruning.0")


def test_t5_keeps_the_layer_that_holds_the_position_bias_whatever_it_is_worth():
    model = tiny.tiny_classifier("t5", layers=4)
    for _, found in stacks_of(model, family_of(model, "test")):
        scale(found[0], 0.01)
    kept = layers_to_keep(model, cut(), "pruning.0")
    assert kept[0] == 0 and len(kept) == 2
    small = drop_layers(model, kept)
    assert [len(found) for _, found in stacks_of(small, family_of(small, "test"))] == [2, 2]
    assert (small.config.num_layers, small.config.num_decoder_layers, small.base_model.decoder.config.num_layers) == (2, 2, 2)
    with pytest.raises(RecipeError, match="layer 0, which holds the position bias"):
        drop_layers(model, (1, 2))


def test_an_encoder_and_a_decoder_of_different_depth_are_refused():
    """The same numbers would leave both, and the shorter one does not have them."""
    model = tiny.tiny_classifier("t5", layers=4, num_decoder_layers=2)
    with pytest.raises(RecipeError, match="which have 4 and 2"):
        layers_to_keep(model, cut(), "pruning.0")


def test_t5_generates_the_same_with_and_without_a_cache_after_layers_left():
    """A decoder that numbers its layers as before writes into another layer's cache."""
    model = AutoModelForSeq2SeqLM.from_config(tiny.tiny_config("t5", layers=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    small = drop_layers(model, (0, 3))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    ids = batch("t5")["input_ids"]
    assert torch.equal(small.generate(ids, use_cache=True, **options), small.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_block_influence_is_one_minus_the_cosine_of_the_hidden_states(family):
    """The second implementation reads the hidden states that the model itself puts out, token by token."""
    model, inputs = tiny.tiny_classifier(family, layers=3), batch(family)
    states = model(**inputs, output_hidden_states=True).hidden_states
    by_hand = []
    for before, after in itertools.pairwise(states):
        changes = [
            1 - (torch.dot(x, y) / (x.norm() * y.norm())).item()
            for row, other, mask in zip(before, after, inputs["attention_mask"], strict=True)
            for x, y, counts in zip(row, other, mask, strict=True)
            if counts
        ]
        by_hand.append(sum(changes) / len(changes))
    assert int((inputs["attention_mask"] == 0).sum()) > 0
    torch.testing.assert_close(block_influence(model, [inputs]), torch.tensor(by_hand, dtype=torch.float64), atol=1e-5, rtol=0)


def test_block_influence_counts_tokens_not_batches():
    """Two batches of unequal size: a mean of means would weigh the tokens of the small one more."""
    model, inputs = tiny.tiny_classifier(layers=3), batch("bert", rows=4)
    parts = [{name: value[:1] for name, value in inputs.items()}, {name: value[1:] for name, value in inputs.items()}]
    torch.testing.assert_close(block_influence(model, parts), block_influence(model, [inputs]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_a_layer_that_does_nothing_has_no_influence_and_leaves(family):
    """Pre-norm layers whose outputs are zero hand on what came; post-norm ones almost do."""
    model = tiny.tiny_classifier(family, layers=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for stack, found in stacks_of(model, family_of(model, "test")):
            for path in (stack.ffn_out, *(attention.output for attention in stack.attentions)):
                for parameter in found[2].get_submodule(path).parameters():
                    parameter.zero_()
    influence = block_influence(model, [batch(family)])
    assert influence.argmin() == 2 and influence.shape == (4,) and influence.dtype == torch.float64
    if family not in ("bert", "roberta", "distilbert", "electra"):  # their layers end in a norm with weights of its own
        assert abs(float(influence[2])) < 1e-6
    assert 2 not in layers_to_keep(model, with_block_influence(0.25), "pruning.0", [batch(family)])


def test_block_influence_leaves_the_model_as_it_came():
    model = tiny.tiny_classifier().train()
    model.bert.pooler.eval()
    block_influence(model, [batch("bert")])
    assert model.training and not model.bert.pooler.training and model.bert.encoder.training
    with pytest.raises((TypeError, ValueError)):
        block_influence(model, [{"nonsense": torch.ones(2, 2)}])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_block_influence_needs_tokens():
    model, inputs = tiny.tiny_classifier(), batch("bert")
    with pytest.raises(RecipeError, match="block_influence needs batches"):
        layers_to_keep(model, with_block_influence(), "pruning.0")
    with pytest.raises(RecipeError, match="no token"):
        block_influence(model, [inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])}])


def test_an_unknown_family_is_refused():
    model = tiny.tiny_classifier()
    model.config.model_type = "brand-new"
    with pytest.raises(RecipeError, match=r"pruning\.2\.structure: layers: model family 'brand-new'.*Known: bert"):
        layers_to_keep(model, cut(), "pruning.2")


def test_layers_that_compute_by_their_number_keep_it(tmp_path):
    """In memory all was as before; the folder that was saved loaded with other answers."""
    model = tiny.tiny_causal_lm("gpt2", layers=3, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match=r"by scale_attn_by_inverse_layer_idx .* number: when loaded again"):
        drop_layers(model, [0, 2])
    small = drop_layers(model, 2, "first")
    small.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, small(ids).logits)
