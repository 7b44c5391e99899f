"""Neurons and heads: every parameter that belongs to one unit, and no other, in every family."""

import copy

import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.families import FAMILIES
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from hf_shrink.pruning.units import kept_units, multiple_of, units_of
from tests import tiny
from tests.tiny import spread

KINDS = ("ffn", "heads")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
def test_a_unit_is_gone_when_either_end_of_it_is(name, kind):
    """Zeroing what writes a unit, or what reads it, must be the same to the model: else pieces of two units are mixed up."""
    outputs = []
    for axis in ("output", "input"):
        model = spread(tiny.tiny_classifier(name))
        for units in units_of(model, FAMILIES[name], kind):
            mask = torch.arange(units.count) != 1
            with torch.no_grad():
                for piece in units.pieces:
                    is_table = isinstance(piece.module, torch.nn.Embedding)
                    writes = piece.axis == "output" and _carries_values(piece.name)
                    if writes if axis == "output" else piece.axis == "input" and not is_table:
                        piece.parameter.mul_(piece.spread(mask))
        outputs.append(model(**tiny.tiny_inputs(name)).logits)
    before = spread(tiny.tiny_classifier(name))(**tiny.tiny_inputs(name)).logits
    assert (outputs[0] - before).abs().max() > 1e-3, "the unit has to matter in this test"
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-6, rtol=1e-5)


def _carries_values(name: str) -> bool:
    """Queries and keys decide where a head looks; only its values (or all three at once, or neurons) end in its output."""
    return not any(part in name for part in ("query.", "key.", "q_lin", "k_lin", "q_proj", "k_proj", ".q.", ".k."))


@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
def test_heads_own_every_row_and_column_of_the_attention(name):
    """By hand: all pieces of all heads together are all parameters of the attention, but for the output's bias."""
    model = tiny.tiny_classifier(name)
    for units in units_of(model, FAMILIES[name], "heads"):
        owned = {piece.name for piece in units.pieces}
        inside = {
            key
            for module in {piece.name.rpartition(".")[0] for piece in units.pieces}
            for key in (f"{module}.{p}" for p, _ in model.get_submodule(module).named_parameters())
        }
        assert inside - owned <= {f"{units.modules[i]}.bias" for i in range(len(units.modules))}
        for piece in units.pieces:
            assert piece.blocks * units.count * piece.inner == piece.parameter.shape[piece.dim]


def test_a_key_value_head_takes_all_queries_that_share_it():
    """Llama with 4 query heads on 2 key-value heads, 8 features each: a unit is 16 rows of q, 8 of k and v, 16 columns of o."""
    (first, _) = units_of(tiny.tiny_classifier("llama"), FAMILIES["llama"], "heads")
    assert first.count == 2 and first.width == 16
    assert {p.name.rpartition("self_attn.")[2]: (p.axis, p.inner) for p in first.pieces} == {
        "q_proj.weight": ("output", 16),
        "k_proj.weight": ("output", 8),
        "v_proj.weight": ("output", 8),
        "o_proj.weight": ("input", 16),
    }


def test_rows_of_a_head_by_hand_where_one_projection_holds_all_three():
    """Head 1 of 4 with 8 features. GPT-2: rows 8..15 of each third. GPT-NeoX: rows 24..47 of one head's query, key, value."""
    for name, rows in (("gpt2", [*range(8, 16), *range(40, 48), *range(72, 80)]), ("gpt_neox", list(range(24, 48)))):
        units = units_of(tiny.tiny_classifier(name), FAMILIES[name], "heads")[0]
        flat = units.pieces[0].flat(torch.arange(4) == 1)
        assert flat.nonzero().flatten().tolist() == rows


def test_layers_of_t5_that_share_positions_lose_the_same_heads():
    """The first layer's position bias has one column a head and is added in all layers: other heads there would not add up."""
    units = units_of(tiny.tiny_classifier("t5"), FAMILIES["t5"], "heads")
    assert [u.owner.rpartition(".")[2] for u in units] == ["SelfAttention", "SelfAttention", "EncDecAttention"]
    assert all(len(u.modules) == 8 for u in units), "q, k, v and o of both layers"
    assert any("relative_attention_bias" in piece.name for piece in units[0].pieces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
def test_shrunk_model_computes_what_the_masked_model_computes(name, kind):
    """Different units leave each layer; one wrong index keeps every shape and ruins the model."""
    model = spread(tiny.tiny_classifier(name))
    generator, masks, zeroed = torch.Generator().manual_seed(1), {}, copy.deepcopy(model)
    for units in units_of(zeroed, FAMILIES[name], kind):
        masks[units.name] = torch.rand(units.count, generator=generator) < 0.6
        masks[units.name][0] = True
        with torch.no_grad():
            for piece in units.pieces:
                if not isinstance(piece.module, torch.nn.Embedding):
                    piece.parameter.mul_(piece.spread(masks[units.name]))
    inputs = tiny.tiny_inputs(name)
    small = shrink(model, masks)
    torch.testing.assert_close(small(**inputs).logits, zeroed(**inputs).logits, atol=1e-5, rtol=0)
    assert (small(**inputs).logits - model(**inputs).logits).abs().max() > 1e-3
    assert small.num_parameters() < model.num_parameters()


@pytest.mark.parametrize(
    ("count", "sparsity", "multiple", "kept"),
    [(12, 0.5, 1, 6), (12, 0.5, 2, 6), (12, 0.42, 2, 6), (12, 0.9, 2, 2), (12, 0.0, 8, 12), (3, 0.5, 1, 1), (3, 0.4, 2, 2)],
)
def test_kept_units_are_the_nearest_multiple(count, sparsity, multiple, kept):
    assert kept_units(count, sparsity=sparsity, multiple=multiple) == kept


@pytest.mark.parametrize(("width", "round_to", "multiple"), [(32, 64, 2), (64, 64, 1), (96, 64, 2), (1, 8, 8), (128, 64, 1)])
def test_multiple_is_the_least_number_of_units_that_fill_a_kernel_tile(width, round_to, multiple):
    """MiniLM's heads have 32 features: four-bit kernels want them in pairs."""
    assert multiple_of(width, round_to) == multiple


def test_removing_every_head_is_refused():
    """0.9 of 4 heads rounds to all of them; attention without a head is a layer that says nothing."""
    config = PruningConfig(structure="heads", sparsity=0.9, round_to=1)
    with pytest.raises(RecipeError, match=r"layer\.0\.attention\.self: 0\.9 removes 4 of 4 heads; at least 1 must stay"):
        groups_of(tiny.tiny_classifier("bert"), [config])
