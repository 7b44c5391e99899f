"""What pruning layer by layer refuses, by name."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForSequenceClassification

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.families import family_of, layers_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.layerwise import LayerTarget, prune_layerwise
from hf_shrink.pruning.oneshot import prune
from tests.pruning.test_layerwise import HALF, batches, tiny


class _Skips(nn.Module):
    """An attention output that is never asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.unused, self.used = nn.Linear(4, 4), module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.used(*args, **kwargs)


def with_unused(model: Any) -> str:
    layer = layers_of(model, family_of(model, "test"))[1]
    layer.mlp = _Skips(layer.mlp)
    return "model.layers.1.mlp.unused"


def poisoned(model: Any, name: str) -> Any:
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = torch.nan
    return model


def test_what_cannot_be_pruned_is_refused_by_name():
    """A layer left dense in silence makes the card's sparsity a lie."""
    model = tiny("llama")
    up = "model.layers.1.mlp.up_proj"
    cases: list[tuple[type[Exception], str, Mapping[str, LayerTarget], Any, Any]] = [
        (RecipeError, "calibration: 0 batches", {up: HALF["wanda"]}, model, []),
        (RecipeError, "lm_head: not a projection in a transformer layer", {"lm_head": HALF["wanda"]}, model, batches()),
        (RecipeError, "criterion 'magnitude' does not go layer", {up: LayerTarget("magnitude", 0.5)}, model, batches()),
        (RecipeError, "give one of the two", {up: LayerTarget("wanda")}, model, batches()),
        (
            RecipeError,
            rf"{up} \[64, 32\]: 32 inputs are not a mult",
            {up: LayerTarget("wanda", None, (2, 5))},
            model,
            batches(),
        ),
        (RecipeError, "nothing but padding", {up: HALF["wanda"]}, model, [_all_padding(batches()[0])]),
        (MismatchError, "cannot tell padding", {up: HALF["wanda"]}, model, [_wide_mask(batches()[0])]),
        (NonFiniteError, rf"{up}\.weight: 1 of 2048 weights", {up: HALF["wanda"]}, poisoned(tiny("llama"), up), batches()),
    ]
    for kind, message, wanted, each, data in cases:
        with pytest.raises(kind, match=message):
            prune_layerwise(each, wanted, data)
    broken = poisoned(tiny("llama"), "model.layers.0.mlp.down_proj")
    with pytest.raises(NonFiniteError, match=f"{up}: .* calibration statistics of its inputs are NaN"):
        prune_layerwise(broken, {up: HALF["sparsegpt"]}, batches())
    unused = with_unused(model)
    with pytest.raises(RecipeError, match=f"{unused}: the calibration never reaches it"):
        prune_layerwise(model, {unused: HALF["wanda"], "model.layers.1.self_attn.q_proj": HALF["wanda"]}, batches())


def _all_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"attention_mask": torch.zeros_like(batch["attention_mask"])}


def _wide_mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"attention_mask": torch.ones(4, 1, 12, 12, dtype=torch.bool)}


def test_another_family_is_told_what_works_instead():
    """`calibration: unknown, did you mean bert?` sends people to rename their model."""
    config = AlbertConfig(
        vocab_size=20, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model, given = AlbertForSequenceClassification(config), [{"input_ids": torch.full((2, 5), 7)}]
    with pytest.raises(RecipeError, match=r"'albert' are is not known .*\n.*allocation: global, .* or criterion magnitude"):
        prune(model, PruningConfig(sparsity=0.5, criterion="wanda"), given)
    small = prune(model, PruningConfig(sparsity=0.5, criterion="wanda", allocation="global"), given)
    zeros = sum(int((w == 0).sum()) for name, w in small.named_parameters() if "albert_layers" in name and w.dim() == 2)
    assert zeros > 0
