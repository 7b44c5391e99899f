"""Recorded statistics against brute force: gates in autograd, concatenated tokens, one process that sees everything."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.statistics import Recorder, Watched
from hf_shrink.targets import oriented
from tests import tiny
from tests.pruning.statistics_worker import FEATURES, GRADIENTS, batch, recorder_of, show

PRODUCTS = ("unit_taylor", "unit_fisher")


def reader(model, family):
    return model.bert.encoder.layer[1].output.dense if family == "bert" else model.transformer.h[1].mlp.c_proj


@contextmanager
def seen_by(module):
    """What ``module`` reads in each forward."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def gate_gradients(model, module, units, rows) -> Tensor:
    """dL/dgate for a gate of its own on each unit and sample: one sample at a time, so that L is the sample's own loss."""
    blocks, count, inner = units
    found = []
    for row in range(len(rows["labels"])):
        gate = torch.ones(count, requires_grad=True)

        def times_gate(_, args, gate=gate):
            return ((args[0].unflatten(-1, (blocks, count, inner)) * gate.view(1, count, 1)).flatten(-3),)

        handle = module.register_forward_pre_hook(times_gate)
        loss = model(**{name: value[row : row + 1] for name, value in rows.items()}).loss
        handle.remove()
        found.append(torch.autograd.grad(loss, gate)[0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("family", "module", "units"),
    [
        ("bert", lambda m: m.bert.encoder.layer[1].output.dense, (1, 64, 1)),
        ("bert", lambda m: m.bert.encoder.layer[0].attention.output.dense, (1, 4, 8)),
        ("bert", lambda m: m.bert.encoder.layer[0].output.dense, (2, 8, 4)),
        ("gpt2", lambda m: m.transformer.h[0].mlp.c_proj, (1, 64, 1)),
        ("gpt2", lambda m: m.transformer.h[1].attn.c_proj, (1, 4, 8)),
        ("llama", lambda m: m.model.layers[0].self_attn.o_proj, (1, 2, 16)),
    ],
)
def test_gate_statistics_equal_autograd_through_gates_however_the_batch_is_cut(family, module, units):
    """The hook sees gradients of a mean over the batch: unscaled, a small last batch counts more; unmasked, padding counts."""
    model = tiny.tiny_classifier(family)
    watched, rows = module(model), batch(7, seed=3)
    gates = gate_gradients(model, watched, units, rows)
    assert float(gates.abs().max()) > 0
    for cuts in ([7], [4, 3], [1] * 7):
        recorder = Recorder([Watched("group", watched, PRODUCTS, units)])
        with recorder.watching(model):
            for part in zip(*(value.split(cuts) for value in rows.values()), strict=True):
                model(**dict(zip(rows, part, strict=True))).loss.backward()
                assert recorder.observe_gradients()
        stats = recorder.stats("group")
        torch.testing.assert_close(stats["unit_taylor"], gates.abs().mean(0), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(stats["unit_fisher"], gates.square().mean(0), rtol=1e-3, atol=1e-12)


def test_micro_batches_of_one_step_give_what_the_whole_batch_gives():
    """Counting micro-batches instead of samples makes the masks depend on the memory of the machine."""
    found = []
    for cuts in ([8], [5, 3]):
        model = tiny.tiny_classifier("bert")
        recorder, rows = recorder_of(model), batch(8, seed=5)
        with recorder.watching(model):
            for part in zip(*(value.split(cuts) for value in rows.values()), strict=True):
                micro = dict(zip(rows, part, strict=True))
                (model(**micro).loss * len(micro["labels"]) / 8).backward()
            recorder.observe_gradients()
        found.append({name: recorder.stats(name) for name in ("weight", "group")})
    for name, stats in found[0].items():
        for key, value in stats.items():
            torch.testing.assert_close(found[1][name][key], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weight_statistics_are_means_over_observations_and_a_sum_for_movement(family):
    """GPT-2 stores ``[in, out]``: read as stored, a square weight's scores would be those of its transpose."""
    model = tiny.tiny_classifier(family)
    module = reader(model, family)
    recorder = Recorder([Watched("weight", module, GRADIENTS)])
    weights, gradients = [], []
    for seed in range(3):
        model.zero_grad()
        model(**batch(4, seed=seed)).loss.backward()
        recorder.observe_gradients(2.0)
        weights.append(oriented(module).detach().clone())
        stored = module.weight.grad
        gradients.append(2.0 * (stored if oriented(module) is module.weight else stored.T))
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    w, g = torch.stack(weights), torch.stack(gradients)
    stats = recorder.stats("weight")
    assert w[0].shape == (32, 64) and not torch.equal(w[0], w[2])
    torch.testing.assert_close(stats["gradient"], g.mean(0), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(stats["squared_gradient"], g.square().mean(0), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(stats["taylor"], (w * g).square().mean(0), rtol=1e-4, atol=1e-14)
    torch.testing.assert_close(stats["movement"], -(w * g).sum(0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_activation_statistics_equal_those_of_all_tokens_that_are_no_padding(family):
    """Padded positions are up to half of a batch, and the embedding of the padding token is nobody's data."""
    model = tiny.tiny_classifier(family)
    module = reader(model, family)
    needs = ("unit_norm", "unit_variance", "unit_samples", "labels")
    recorder = Recorder([Watched("weight", module, FEATURES), Watched("group", module, needs, (2, 8, 4))])
    batches = [batch(4, seed=1), batch(3, seed=2, longer=2)]
    with recorder.watching(model), seen_by(module) as seen, torch.no_grad():
        for inputs in batches:
            model(**inputs)
    masks = [inputs["attention_mask"].bool() for inputs in batches]
    assert all(not bool(mask.all()) for mask in masks)
    tokens = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)])
    grouped = tokens.unflatten(-1, (2, 8, 4))
    stats = recorder.stats("weight") | recorder.stats("group")
    torch.testing.assert_close(stats["input_norm"], tokens.norm(dim=0))
    torch.testing.assert_close(stats["input_mean"], tokens.mean(0))
    torch.testing.assert_close(stats["input_variance"], tokens.var(0, correction=0))
    torch.testing.assert_close(stats["unit_norm"], torch.stack([grouped[:, :, u].norm() for u in range(8)]))
    variance = torch.stack([grouped[:, :, u].var(0, correction=0).sum() for u in range(8)])
    torch.testing.assert_close(stats["unit_variance"], variance)
    rows = [x[row][mask[row]] for x, mask in zip(seen, masks, strict=True) for row in range(len(mask))]
    by_hand = torch.stack([row.mean(0).unflatten(-1, (2, 8, 4)).mean(dim=(0, 2)) for row in rows])
    torch.testing.assert_close(stats["unit_samples"], by_hand)
    assert stats["labels"].tolist() == torch.cat([inputs["labels"] for inputs in batches]).tolist()


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_more_padding_changes_nothing(family):
    """A longer sentence in the batch would change which neurons its neighbours keep."""
    found = []
    for longer in (0, 9):
        model = tiny.tiny_classifier(family)
        recorder = recorder_of(model)
        with recorder.watching(model):
            show(model, recorder, batch(6, seed=4, longer=longer))
        found.append(recorder.stats("weight") | recorder.stats("group"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=2e-3, atol=1e-7, msg=key)


class Flat(nn.Module):
    """Reads all tokens of a batch as one row after the other, as some decoders do."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, inputs, attention_mask=None):
        tokens = self.inner(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        return self.head(tokens[:, 0])


def test_flat_inputs_and_positional_masks_are_understood_and_models_without_a_mask_count_all():
    """A mask passed by position, or tokens flattened before the projection, would let the padding in."""
    model, inputs = Flat(), torch.randn(4, 5, 6)
    mask = torch.ones(4, 5, dtype=torch.int64)
    mask[1:, 3:] = 0
    for masks, kept in (((mask,), inputs[mask.bool()]), ((), inputs.flatten(0, 1))):
        recorder = Recorder([Watched("inner", model.inner, ("input_norm",)), Watched("head", model.head, ("input_norm",))])
        with recorder.watching(model), seen_by(model.head) as pooled:
            model(inputs, *masks)
        torch.testing.assert_close(recorder.stats("inner")["input_norm"], kept.norm(dim=0))
        torch.testing.assert_close(recorder.stats("head")["input_norm"], pooled[0].norm(dim=0))


def test_gates_do_not_see_padding_even_where_the_loss_does():
    """A head that averages over all positions sends gradients into the padding."""
    model, inputs, mask = Flat(), torch.randn(4, 5, 6), torch.ones(4, 5)
    mask[1:, 3:] = 0
    recorder = Recorder([Watched("head", model.head, PRODUCTS, (1, 3, 1))])
    model.forward = lambda inputs, attention_mask: model.head(model.inner(inputs)).sum()
    with recorder.watching(model):
        model(inputs, attention_mask=mask).backward()
        recorder.observe_gradients()
    read, pull = model.inner(inputs).detach() * mask.unsqueeze(-1), model.head.weight.detach().sum(0)
    torch.testing.assert_close(recorder.stats("head")["unit_taylor"], 4 * (read * pull).sum(1).abs().mean(0))


@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (4, 7)])
def test_a_mask_that_does_not_say_which_positions_are_padding_is_refused(shape):
    model = Flat()
    recorder = Recorder([Watched("inner", model.inner, ("input_norm",))])
    with recorder.watching(model), pytest.raises(MismatchError, match=r"inner: mask \[4, .*of \[4, 5\] positions"):
        model(torch.randn(4, 5, 6), torch.ones(shape))


def test_encoder_decoder_models_have_two_masks():
    """Cross-attention sits in the decoder and reads the encoder: with lengths alike, the wrong mask fits."""
    config = T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    source, target = torch.ones(3, 6, dtype=torch.int64), torch.randint(4, 20, (3, 6))
    source[0, 2:] = 0
    target[1, 4:] = -100
    inputs = {"input_ids": torch.randint(4, 20, (3, 6)), "attention_mask": source, "labels": target}
    layers = model.decoder.block[0].layer
    modules = {
        "encoder": (model.encoder.block[0].layer[1].DenseReluDense.wo, source.bool()),
        "cross": (layers[1].EncDecAttention.v, source.bool()),
        "decoder": (layers[2].DenseReluDense.wo, target != -100),
        "head": (model.lm_head, target != -100),
    }
    recorder = Recorder([Watched(name, module, ("input_norm",)) for name, (module, _) in modules.items()])
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
        for name, (module, _) in modules.items()
    ]
    with recorder.watching(model):
        model(**inputs)
    for handle in handles:
        handle.remove()
    for name, (_, mask) in modules.items():
        assert not bool(mask.all())
        torch.testing.assert_close(recorder.stats(name)["input_norm"], seen[name][mask].norm(dim=0), msg=name)


# ---- when nothing must be recorded ----


# ---- state ----


@pytest.mark.parametrize("labels", [None, torch.rand(4), torch.zeros(4, 5, dtype=torch.int64)])
def test_without_one_class_a_sample_there_is_no_information_about_it(labels):
    model = Flat()
    forward = model.forward
    model.forward = lambda inputs, labels: forward(inputs)
    recorder = Recorder([Watched("inner", model.inner, ("unit_samples", "labels"), (1, 3, 2))])
    with recorder.watching(model), pytest.raises(RecipeError, match="inner: needs labels, one class for each of 4 samples"):
        model(torch.randn(4, 5, 6), labels=labels)


# ---- what cannot be recorded ----


# ---- several processes ----
