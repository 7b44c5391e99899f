"""Layer by layer: the same as a second implementation, each layer on what the pruned ones put out, one layer's memory."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_shrink.families import family_of, named_layers
from hf_shrink.pruning import layerwise
from hf_shrink.pruning.layerwise import LayerTarget, prune_layerwise
from hf_shrink.pruning.patterns import keep_n_of_m, keep_top_of_rows
from hf_shrink.pruning.sparsegpt import sparsegpt
from hf_shrink.targets import oriented, projections
from tests.tiny import ALL_FAMILIES, VOCABULARY, tiny_causal_lm, tiny_classifier, tiny_inputs

HALF = {name: LayerTarget(name, sparsity=0.5) for name in ("wanda", "sparsegpt")}
DECODERS = {"gpt2", "gpt_neox", "llama", "qwen2", "qwen3"}


def tiny(family: str, **config: Any) -> Any:
    """A classifier of an encoder, a language model of a decoder; weights large enough that layers change what they read."""
    model = (tiny_causal_lm if family in DECODERS else tiny_classifier)(family, **config)
    with torch.no_grad():
        for module in projections(model).values():
            module.weight.mul_(5)
    return model


def inside(model: Any) -> list[str]:
    """The names of the projections in the layers."""
    prefixes = tuple(f"{layer}." for layer in named_layers(model, family_of(model, "test")))
    return [name for name in projections(model) if name.startswith(prefixes)]


def targets(model: Any, target: LayerTarget) -> dict[str, LayerTarget]:
    return dict.fromkeys(inside(model), target)


def batches(count: int = 3, rows: int = 4, tokens: int = 12, padded: int = 0) -> list[dict[str, Tensor]]:
    """Random tokens; the last ``padded`` positions of the first half of the rows are padding."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        ids = torch.randint(4, len(VOCABULARY), (rows, tokens), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[: rows // 2, -padded:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def data_for(family: str) -> list[dict[str, Tensor]]:
    """Batches with padding, or images."""
    if family == "vit":
        return [tiny_inputs(family, rows=8, seed=seed) for seed in range(3)]
    data = batches(padded=5)
    if family == "t5":  # where a text ends is where the classifier looks
        for batch in data:
            batch["input_ids"][:, 6] = 3
            batch["input_ids"][:2, 7:] = 0
            batch["input_ids"][2:, 11] = 3
            batch["input_ids"][2:, 6] = 4
            batch["decoder_attention_mask"] = torch.ones_like(batch["attention_mask"])
            batch["decoder_attention_mask"][0, 4:] = 0
    return data


def inputs_of(model: Any, name: str, data: list[dict[str, Tensor]]) -> Tensor:
    """What the projection ``name`` reads, float32 ``[positions, in]``, without padding: a pass through the whole model."""
    of_decoder = ".decoder." in name and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    key = "decoder_attention_mask" if of_decoder else "attention_mask"
    masks = iter([batch[key].bool() if key in batch else None for batch in data])
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        mask = next(masks)
        seen.append((args[0].flatten(0, -2) if mask is None else args[0][mask]).float())

    hook = model.get_submodule(name).register_forward_pre_hook(look)
    with torch.no_grad():
        for batch in data:
            model(**batch)
    hook.remove()
    return torch.cat(seen)


def masks_of(model: Any, wanted: dict[str, LayerTarget], data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What stays (True) of each target once ``model`` has been pruned; none of its weights was zero before."""
    assert not any((oriented(model.get_submodule(name)) == 0).any() for name in wanted)
    prune_layerwise(model, wanted, data)
    return {name: oriented(model.get_submodule(name)) != 0 for name in wanted}


def by_hand(model: Any, target: LayerTarget, data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The second implementation: whole passes, every layer's inputs taken with the layers before it pruned. In place."""
    masks: dict[str, Tensor] = {}
    for layer in named_layers(model, family_of(model, "test")):
        names = [name for name in inside(model) if name.startswith(f"{layer}.")]
        read = {name: inputs_of(model, name, data) for name in names}
        for name in names:
            weight, x = oriented(model.get_submodule(name)), read[name]
            if target.criterion == "sparsegpt":
                found, masks[name] = sparsegpt(weight.float(), x.T @ x, sparsity=target.sparsity, pattern=target.pattern)
            else:
                scores = weight.detach().float().abs() * x.norm(dim=0)
                masks[name] = keep_top_of_rows(scores, 0.5) if target.pattern is None else keep_n_of_m(scores, *target.pattern)
                found = weight.detach().float() * masks[name]
            with torch.no_grad():
                weight.copy_(found)
    return masks


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_it_equals_whole_passes_in_every_family_with_padding(family, pattern, criterion):
    """A layer called with another's mask, positions or inputs, padding that counts, or inputs from before pruning: all run."""
    target = LayerTarget(criterion, sparsity=None if pattern else 0.5, pattern=pattern)
    data = data_for(family)
    model, other = tiny(family), tiny(family)
    masks, expected = masks_of(model, targets(model, target), data), by_hand(other, target, data)
    assert masks.keys() == expected.keys() and masks
    assert family != "t5" or {name.split(".")[1] for name in masks} == {"encoder", "decoder"}
    for name, mask in masks.items():
        same = (mask == expected[name]).float().mean()
        at_least = 0.98 if pattern is None else 0.9  # sums in another order decide near ties, of groups among them
        assert float(same) > at_least, f"{name}: {float(same)}"
        assert int(mask.sum()) == int(expected[name].sum()), f"{name}: another number of zeros"
    if family == "t5" and pattern is not None:
        return  # one near tie in its first layers goes on through both stacks; the masks are compared above
    logits = [each(**data[0]).logits for each in (model, other)]
    torch.testing.assert_close(*logits, atol=0.05 * float(logits[1].detach().abs().max()), rtol=0)


def test_padding_changes_nothing():
    """Half of a padded batch is the pad token: its norms would decide what goes."""
    short = batches(tokens=8)
    long = [
        {
            "input_ids": torch.cat([batch["input_ids"], torch.zeros(4, 6, dtype=torch.long)], dim=1),
            "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(4, 6, dtype=torch.long)], dim=1),
        }
        for batch in short
    ]
    models = [tiny("bert"), tiny("bert"), tiny("bert")]
    unmasked = [{"input_ids": batch["input_ids"]} for batch in long]
    first, second, wrong = (
        masks_of(model, targets(model, HALF["wanda"]), data)
        for model, data in zip(models, (short, long, unmasked), strict=True)
    )
    assert all(float((first[name] == second[name]).float().mean()) > 0.99 for name in first)
    assert any(float((first[name] == wrong[name]).float().mean()) < 0.95 for name in first), "else this could not fail"


def test_wanda_in_the_first_layer_is_three_lines():
    model = tiny("llama")
    name = "model.layers.0.self_attn.q_proj"
    weight, x = oriented(model.get_submodule(name)).detach().clone(), inputs_of(model, name, batches())
    scores = weight.abs() * x.square().sum(dim=0).sqrt()
    lowest = scores.argsort(dim=1, stable=True)[:, : weight.shape[1] // 2]
    expected = torch.ones_like(weight, dtype=torch.bool).scatter(1, lowest, False)
    assert torch.equal(masks_of(model, {name: HALF["wanda"]}, batches())[name], expected)


def test_one_layer_s_statistics_are_alive_at_once(monkeypatch):
    """Hessians of every layer would not fit beside a model of any size."""
    model = tiny("llama", layers=4)
    target = targets(model, HALF["sparsegpt"])
    del target["model.layers.2.self_attn.o_proj"]
    made, most = [0], [0]
    add = layerwise._Statistics._add

    def counted(self: Any, name: str, features: Tensor) -> None:
        add(self, name, features)
        gc.collect()
        alive = [each for each in gc.get_objects() if type(each) is layerwise._Statistics]
        most[0] = max(most[0], len(alive))
        made[0] = max(made[0], len(self._sums))

    monkeypatch.setattr(layerwise._Statistics, "_add", counted)
    prune_layerwise(model, target, batches(count=1))
    assert most == [1]
    assert made == [4], "query, key and value share one Hessian, so do gate and up; attention output and down have their own"


def test_model_comes_back_as_it_was_but_for_the_weights():
    """A patched forward, a hook or eval mode that stays would change whatever comes next."""
    model = tiny("gpt2").train()
    model.transformer.h[0].mlp.dropout.eval()
    modes = [module.training for module in model.modules()]
    untouched = {
        name: value.clone() for name, value in model.state_dict().items() if name.removesuffix(".weight") not in inside(model)
    }
    prune_layerwise(model, targets(model, HALF["sparsegpt"]), batches())
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    assert model.config.use_cache
    assert not any(module._forward_pre_hooks for module in model.modules()) and not any(
        "forward" in vars(m) for m in model.modules()
    )
    assert untouched and all(torch.equal(model.state_dict()[name], value) for name, value in untouched.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bfloat16_statistics_are_float32():
    """Sums in bfloat16 stop growing after a few hundred tokens; every norm would be about the same."""
    model, exact = tiny("llama").bfloat16(), tiny("llama").bfloat16()
    data = batches(count=40)
    masks = masks_of(model, targets(model, HALF["wanda"]), data)
    name = "model.layers.0.mlp.down_proj"
    weight, x = oriented(exact.get_submodule(name)).detach().float(), inputs_of(exact, name, data)
    assert float((masks[name] == keep_top_of_rows(weight.abs() * x.norm(dim=0), 0.5)).float().mean()) > 0.999
    assert model.get_submodule(name).weight.dtype == torch.bfloat16


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_masks_are_the_same_for_one_and_two_threads(criterion):
    """A recipe run again on another machine would give another model under the same name."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = tiny("llama", hidden=128, ffn=256)
        found.append(masks_of(model, targets(model, HALF[criterion]), batches(rows=16, tokens=32)))
    same = [float((found[0][name] == found[1][name]).float().mean()) for name in found[0]]
    assert min(same) > 0.999


def test_the_batches_stay_as_they_are():
    """A model that is given embeddings hands them to its first layer as they are; hidden states are written in place."""
    model = tiny("llama", layers=3)
    data = [{"inputs_embeds": torch.randn(2, 6, 32)} for _ in range(2)]
    before = [batch["inputs_embeds"].clone() for batch in data]
    prune_layerwise(model, targets(model, HALF["wanda"]), data)
    assert all(torch.equal(batch["inputs_embeds"], value) for batch, value in zip(data, before, strict=True))


def test_only_the_targets_are_pruned_and_layers_without_one_are_passed_through():
    model = tiny("llama", layers=3)
    name = "model.layers.1.mlp.up_proj"
    before = {each: oriented(module).detach().clone() for each, module in projections(model).items()}
    prune_layerwise(model, {name: HALF["sparsegpt"]}, batches())
    changed = [each for each, module in projections(model).items() if not torch.equal(oriented(module), before[each])]
    assert changed == [name]


def test_criteria_may_differ_inside_a_layer():
    """Query and key read one tensor: a norm in place of a Hessian must not be shared."""
    model, other = tiny("llama"), tiny("llama")
    query, key = (f"model.layers.0.self_attn.{end}" for end in ("q_proj", "k_proj"))
    mixed = masks_of(model, {query: HALF["wanda"], key: HALF["sparsegpt"]}, batches())
    assert torch.equal(mixed[query], masks_of(tiny("llama"), {query: HALF["wanda"]}, batches())[query])
    assert torch.equal(mixed[key], masks_of(other, {key: HALF["sparsegpt"]}, batches())[key])


def test_a_fit_may_differ_between_readers_of_one_input():
    """Gate and up share what is known of their input: the Hessian stays as long as one of them is fitted by it."""
    gate, up = (f"model.layers.0.mlp.{end}" for end in ("gate_proj", "up_proj"))
    fitted = LayerTarget("sparsegpt", sparsity=0.5, reconstruct=True)
    weights = {}
    for name, wanted in {
        "mixed": {gate: HALF["sparsegpt"], up: fitted},
        "plain": {gate: HALF["sparsegpt"], up: HALF["sparsegpt"]},
        "fitted": {gate: fitted, up: fitted},
    }.items():
        model = tiny("llama")
        prune_layerwise(model, wanted, batches())
        weights[name] = {each: oriented(model.get_submodule(each)) for each in (gate, up)}
    assert torch.equal(weights["mixed"][gate], weights["plain"][gate])
    assert torch.equal(weights["mixed"][up], weights["fitted"][up])
    assert not torch.equal(weights["plain"][up], weights["fitted"][up]), "else this could not fail"
