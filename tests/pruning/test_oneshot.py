"""Pruning at once: exact sparsity, the original untouched, nothing configured ignored."""

import pytest
import torch
import torch.nn.utils.prune

import hf_shrink
from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import CRITERIA, Criterion
from hf_shrink.pruning.oneshot import prune
from hf_shrink.targets import projections
from tests import tiny
from tests.tiny import spread


def test_one_call_gives_full_sparsity_and_leaves_the_original():
    """By hand: 0.5 of twelve 32 x 32 or 32 x 64 matrices."""
    model = tiny.tiny_classifier("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model, PruningConfig(sparsity=0.5))
    zeros = sum(int((p == 0).sum()) for n, p in pruned.named_parameters() if ".layer." in n and n.endswith("dense.weight"))
    zeros += sum(int((p == 0).sum()) for n, p in pruned.named_parameters() if ".self." in n and n.endswith("weight"))
    assert zeros == 2 * (4 * 1024 + 2 * 2048) // 2
    assert torch.equal(pruned.classifier.weight, model.classifier.weight)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_several_entries_are_applied_together():
    configs = [PruningConfig(structure="ffn", sparsity=0.5), PruningConfig(sparsity=0.25, target_modules=["query"])]
    pruned = prune(tiny.tiny_classifier("bert"), configs)
    assert pruned.config.intermediate_size == 32
    assert int((pruned.bert.encoder.layer[1].attention.self.query.weight == 0).sum()) == 256


def batches(model_name: str = "bert", *, rows: int = 8, count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Calibration with labels."""
    found = []
    for seed in range(count):
        batch = tiny.tiny_inputs(model_name, rows=rows, seed=seed)
        found.append(batch | {"labels": torch.arange(rows) % 3})
    return found


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("structure", ["ffn", "heads", "unstructured"])
def test_every_criterion_prunes_at_once_and_leaves_the_model_alone(structure, criterion):
    """Gradients, hooks or a changed mode left behind would spoil what the user does next."""
    model = spread(tiny.tiny_classifier("bert"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if CRITERIA[criterion].function is None and structure == "unstructured":
        with pytest.raises(RecipeError, match="scores heads or neurons"):
            PruningConfig(structure=structure, criterion=criterion, sparsity=0.5)
        return
    config = PruningConfig(structure=structure, criterion=criterion, sparsity=0.5)
    calibration = batches() if CRITERIA[criterion].needs_data else None
    small = prune(model, config, calibration)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for net in (model, small) for parameter in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for net in (model, small) for m in net.modules())
    layer = small.bert.encoder.layer[0]
    if structure == "ffn":
        assert layer.intermediate.dense.out_features == 32
    elif structure == "heads":
        assert layer.attention.self.query.out_features == 16
    else:
        assert int((layer.intermediate.dense.weight == 0).sum()) == 32 * 64 // 2


def test_fisher_at_once_keeps_the_neurons_that_a_gate_says_matter():
    """Second implementation: a gate on each neuron, its gradient for each sample alone, squared and averaged."""
    model = spread(tiny.tiny_classifier("bert", layers=1))
    (batch,) = batches(count=1)
    layer, total = model.bert.encoder.layer[0], torch.zeros(64)
    for row in range(8):
        gate = torch.ones(64, requires_grad=True)
        handle = layer.intermediate.register_forward_hook(lambda module, args, out, gate=gate: out * gate)
        single = {name: value[row : row + 1] for name, value in batch.items()}
        length = int(single["attention_mask"].sum())
        single = {n: v[:, :length] if v.dim() == 2 else v for n, v in single.items()}
        (gradient,) = torch.autograd.grad(model(**single).loss, gate)
        total += gradient.square()
        handle.remove()
    expected = total.argsort(descending=True)[:32].sort().values
    small = prune(model, PruningConfig(structure="ffn", criterion="fisher", sparsity=0.5), [batch])
    rows = small.bert.encoder.layer[0].intermediate.dense.weight
    kept = [int((layer.intermediate.dense.weight == row).all(dim=1).nonzero()) for row in rows]
    assert kept == expected.tolist()


def test_layers_hidden_width_heads_and_neurons_go_in_one_call():
    """What is left of 4 layers x 32 wide x 4 heads x 64 neurons: 2 x 16 x 2 x 32, which a stock config can say."""
    model = tiny.tiny_classifier("bert", layers=4)
    entries = [PruningConfig(structure=s, sparsity=0.5) for s in ("layers", "hidden", "heads", "ffn")]
    config = prune(model, entries).config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (2, 16, 2, 32)


@pytest.mark.parametrize("pattern", [None, [2, 4]])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_layerwise_criteria_change_what_they_are_asked_to_and_nothing_else(criterion, pattern):
    model = spread(tiny.tiny_causal_lm("llama"))
    data = [{"input_ids": torch.randint(4, 20, (4, 12), generator=torch.Generator().manual_seed(s))} for s in range(4)]
    how = {"sparsity": 0.5} if pattern is None else {"structure": "n_of_m", "pattern": pattern}
    small = prune(model, PruningConfig(criterion=criterion, exclude_modules=["mlp.down_proj"], **how), data)
    for name, module in projections(small).items():
        weight, before = module.weight, model.get_submodule(name).weight
        if name == "lm_head" or name.endswith("down_proj"):
            assert torch.equal(weight, before)
        else:
            assert int((weight == 0).sum()) == weight.numel() // 2
            updated = bool((weight != before)[weight != 0].any())
            assert updated == (criterion == "sparsegpt"), "only SparseGPT moves what stays"


def test_reconstruction_brings_the_output_nearer_to_the_whole_model():
    """Least squares on the data it is fitted to cannot be worse there, projection by projection."""
    model = spread(tiny.tiny_classifier("bert"))
    data = batches(rows=16, count=4)
    dense = model(**data[0]).logits
    errors = []
    for reconstruct in (False, True):
        config = PruningConfig(structure="ffn", criterion="activation_norm", sparsity=0.5, reconstruct=reconstruct)
        errors.append(float((prune(model, config, data)(**data[0]).logits - dense).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_single_weights_are_fitted_once_more_where_that_is_asked_for(pattern):
    """A key that reaches the config and not the algorithm leaves the error as it is."""
    model = spread(tiny.tiny_classifier("bert", layers=1))
    data, errors = batches(rows=16, count=4), []
    words = {"structure": "n_of_m", "pattern": pattern} if pattern else {"sparsity": 0.5}
    name = "bert.encoder.layer.0.attention.self.query"
    read = torch.cat([model.bert.embeddings(batch["input_ids"])[batch["attention_mask"].bool()] for batch in data]).detach()
    for reconstruct in (False, True):
        small = prune(model, PruningConfig(criterion="sparsegpt", reconstruct=reconstruct, **words), data)
        change = small.get_submodule(name).weight - model.get_submodule(name).weight
        errors.append(float((read @ change.detach().T).square().sum()))
    assert errors[1] < 0.97 * errors[0]


def test_reconstruction_is_exact_where_what_is_left_can_say_it_all():
    """By hand: neurons 32 to 63 are copies of 0 to 31, so half of them with twice the weight is the whole layer."""
    model = spread(tiny.tiny_classifier("bert", layers=1))
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[32:] = layer.intermediate.dense.weight[:32]
        layer.intermediate.dense.bias[32:] = layer.intermediate.dense.bias[:32]
    data = batches(rows=32, count=8)
    first_half = Criterion(None, unit=lambda stats: -torch.arange(64.0))
    config = PruningConfig(structure="ffn", criterion=first_half, sparsity=0.5, reconstruct=True)
    small, cut = (
        prune(model, c, data if c.reconstruct else None) for c in (config, config.model_copy(update={"reconstruct": False}))
    )
    dense = model(**data[0]).logits
    torch.testing.assert_close(small(**data[0]).logits, dense, atol=2e-2, rtol=0)
    assert (cut(**data[0]).logits - dense).abs().max() > 0.5


@pytest.mark.parametrize("reconstruct", [False, True])
def test_padding_is_no_data(reconstruct):
    """Longer padding must not change which neurons stay, nor what reads them is fitted to."""
    model = spread(tiny.tiny_classifier("bert"))
    kept, read = [], []
    for extra in (0, 7):
        data = batches()
        for batch in data:
            rows = len(batch["input_ids"])
            batch["input_ids"] = torch.cat([batch["input_ids"], torch.full((rows, extra), 9)], dim=1)
            batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.zeros(rows, extra, dtype=torch.long)], dim=1)
        config = PruningConfig(structure="ffn", criterion="activation_variance", sparsity=0.5, reconstruct=reconstruct)
        layer = prune(model, config, data).bert.encoder.layer[0]
        kept.append(layer.intermediate.dense.weight)
        read.append(layer.output.dense.weight)
    assert torch.equal(*kept)
    torch.testing.assert_close(*read, atol=1e-4, rtol=0)


def test_the_public_call_takes_fractions_and_layers_may_leave_first():
    """The names are those of the model that is left: the one before has a layer more, which nobody measured."""
    config = PruningConfig(structure="ffn", sparsity=0.5, allocation="sensitivity")
    entries = [PruningConfig(structure="layers", sparsity=0.5), config]
    small = hf_shrink.prune(tiny.tiny_classifier("bert"), entries, fractions={"bert.encoder.layer.0:ffn": 0.25})
    assert [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer] == [48]


def test_dead_inputs_do_not_stop_a_refit():
    """Neurons that are all zero give a matrix that cannot be solved; what reads them then stays as it is."""
    model = tiny.tiny_classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight.zero_()
        model.bert.encoder.layer[0].intermediate.dense.bias.zero_()
    config = PruningConfig(structure="ffn", sparsity=0.5, reconstruct=True)
    assert all(torch.isfinite(p).all() for p in prune(model, config, batches()).parameters())


def test_heads_that_t5_shares_are_scored_by_all_layers():
    """By hand: unit scores that are the layer's number add up over the layers, and a shape that is wrong is said."""
    model = tiny.tiny_classifier("t5")
    seen = []
    criterion = Criterion(None, unit=lambda stats: seen.append(1) or torch.arange(4.0))
    prune(model, PruningConfig(structure="heads", criterion=criterion, sparsity=0.5))
    assert len(seen) == 6, "three kinds of attention, two layers each"
    wrong = Criterion(None, unit=lambda stats: torch.ones(3))
    with pytest.raises(RecipeError, match=r"unit scores \[3\] for \[4\] units"):
        prune(model, PruningConfig(structure="heads", criterion=wrong, sparsity=0.5))
    one_layer = PruningConfig(structure="heads", sparsity=0.5, target_modules=["encoder.block.0.layer.0.SelfAttention.q"])
    with pytest.raises(RecipeError, match="in some layers only, but its heads are one in all"):
        prune(model, one_layer)
