"""Patterns to layers: nothing selected by mistake, nothing missed in silence."""

import pytest
import torch
from torch import nn

from hf_shrink.errors import RecipeError
from hf_shrink.targets import matches, oriented, projections, select
from tests import tiny


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_oriented_is_out_by_in_and_a_view_of_the_weight(name):
    """GPT-2 stores its weights transposed: a criterion that reads rows would read columns there."""
    model = tiny.tiny_classifier(name)
    for path, module in projections(model).items():
        inputs = torch.randn(3, oriented(module).shape[1])
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(module(inputs), inputs @ oriented(module).T + bias, msg=path)
        assert oriented(module).data_ptr() == module.weight.data_ptr(), "a copy would swallow what is written to it"


def test_projections_are_every_linear_and_conv1d_and_nothing_else():
    assert len(projections(tiny.tiny_classifier("bert", layers=3))) == 3 * 6 + 2, "six in a layer, pooler and classifier"
    assert len(projections(tiny.tiny_classifier("gpt2", layers=3))) == 3 * 4 + 1, "four in a layer and the score head"
    assert not projections(nn.ModuleDict({"embedding": nn.Embedding(3, 4), "norm": nn.LayerNorm(4)}))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("output.dense", True),
        ("dense", True),
        ("layer.0.output.dense", True),
        ("put.dense", False),
        ("layer.0", False),
        ("", False),
    ],
)
def test_a_pattern_is_a_whole_name_or_its_dotted_end(pattern, expected):
    """``put.dense`` matching ``output.dense`` would select by accident of spelling."""
    assert matches("layer.0.output.dense", pattern) is expected


def test_select_takes_all_without_targets_and_leaves_out_what_is_excluded():
    layers = projections(tiny.tiny_classifier("bert"))
    assert select(layers, (), (), "here") == layers
    chosen = select(layers, ("query", "key"), ("layer.0.attention.self.key",), "here")
    assert sorted(name.split("layer.")[1] for name in chosen) == [
        "0.attention.self.query",
        "1.attention.self.key",
        "1.attention.self.query",
    ]


@pytest.mark.parametrize(
    ("field", "arguments"), [("target_modules", (["ouput.dense"], [])), ("exclude_modules", ([], ["ouput.dense"]))]
)
def test_a_pattern_that_matches_nothing_is_refused_with_field_count_and_near_names(field, arguments):
    """A typo must not train for hours and prune nothing."""
    layers = projections(tiny.tiny_classifier("bert", layers=12))
    with pytest.raises(RecipeError) as caught:
        select(layers, *arguments, "pruning.0")
    text = str(caught.value)
    assert text.startswith(f"pruning.0.{field}: 'ouput.dense' matches 0 of 74 modules; nearest: output.dense, ")
    assert text.count(",") == 4 and "\n" not in text, "five names, one line"


def test_excluding_everything_is_refused():
    with pytest.raises(RecipeError, match=r"pruning\.0\.exclude_modules: leaves 0 of 14 modules"):
        select(projections(tiny.tiny_classifier("bert")), (), ("dense", "query", "key", "value", "classifier"), "pruning.0")
