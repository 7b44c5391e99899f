"""Recorded statistics against brute force: gates in autograd, concatenated tokens, one process that sees everything."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError
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


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_hooks_come_off_even_when_the_forward_raises_and_see_nothing_outside_of_it():
    """A hook left behind slows every later forward down, and is pickled with the model."""
    model = tiny.tiny_classifier("bert")
    recorder, before = recorder_of(model), hooks(model)
    with pytest.raises(IndexError), recorder.watching(model):
        assert hooks(model) != before
        model(**batch(2, seed=1) | {"labels": torch.tensor([0, 7])})
    assert hooks(model) == before
    recorder.reset()
    with recorder.watching(model):
        reader(model, "bert")(torch.randn(2, 3, 64))
    with pytest.raises(RecipeError, match="nothing is recorded"):
        recorder.stats("group")


def test_without_a_need_for_activations_there_are_no_hooks():
    model = tiny.tiny_classifier("bert")
    recorder, before = Recorder([Watched("weight", reader(model, "bert"), GRADIENTS)]), hooks(model)
    with recorder.watching(model):
        assert hooks(model) == before


def test_an_evaluation_in_the_middle_of_training_records_nothing():
    """Evaluating more often would otherwise change the masks, and let evaluation data decide them."""
    model = tiny.tiny_classifier("bert")
    recorder = recorder_of(model)
    with recorder.watching(model, training_only=True):
        show(model.train(), recorder, batch(4, seed=1))
        before = recorder.state_dict()
        model.eval()(**batch(6, seed=2))
    after = recorder.state_dict()
    assert before["group/product_count"].tolist() == [4] and before["group/sample_count"].tolist() == [4]
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_forward_without_gradients_adds_activations_and_no_gates():
    model = tiny.tiny_classifier("bert")
    recorder = recorder_of(model)
    with recorder.watching(model):
        show(model, recorder, batch(4, seed=1))
        with torch.no_grad():
            model(**batch(3, seed=2))
        model(**batch(2, seed=2))  # a forward whose backward never comes
    state = recorder.state_dict()
    assert state["group/sample_count"].tolist() == [9] and state["group/product_count"].tolist() == [4]


def test_activation_checkpointing_counts_each_token_once():
    """The layers run again in backward: every sum would double, but not the number of samples it is divided by."""
    found = []
    for checkpointing in (False, True):
        model = tiny.tiny_classifier("bert", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        recorder, calls = recorder_of(model), []
        reader(model, "bert").register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with recorder.watching(model):
            show(model, recorder, batch(4, seed=1))
        assert len(calls) == 1 + checkpointing
        found.append(recorder.state_dict())
    assert all(torch.equal(found[1][key], value) for key, value in found[0].items())


def test_a_module_that_is_used_twice_has_one_gate():
    """Its two uses counted as two samples would miss that they cancel or add up."""
    model = tiny.tiny_classifier("bert")
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    rows, module, units = batch(4, seed=3), reader(model, "bert"), (1, 64, 1)
    recorder = Recorder([Watched("group", module, PRODUCTS, units)])
    with recorder.watching(model):
        show(model, recorder, rows)
    expected = gate_gradients(model, module, units, rows).abs().mean(0)
    torch.testing.assert_close(recorder.stats("group")["unit_taylor"], expected, rtol=1e-3, atol=1e-9)


def test_loss_scale_is_taken_out_of_gates_and_an_overflow_leaves_everything_as_it_was():
    """A float16 loss scale that halves in the middle would let early steps decide; one infinity would stay for ever."""
    model = tiny.tiny_classifier("bert")
    plain, scaled = recorder_of(model), recorder_of(model)
    with plain.watching(model):
        show(model, plain, batch(4, seed=1))
    model.zero_grad()
    with scaled.watching(model):
        (model(**batch(4, seed=1)).loss * 1024).backward()
        assert scaled.observe_gradients(1 / 1024, loss_scale=1024)
        for name in ("weight", "group"):
            for key, value in plain.stats(name).items():
                torch.testing.assert_close(scaled.stats(name)[key], value, rtol=1e-4, atol=1e-12, msg=key)
        before = scaled.state_dict()
        for skip in (True, False):
            (model(**batch(4, seed=1)).loss * float("inf")).backward()
            if skip:
                assert not scaled.observe_gradients(skip_overflow=True)
            else:
                with pytest.raises(NonFiniteError, match="gradients are NaN or infinite; nothing of this step is recorded"):
                    scaled.observe_gradients()
    after = scaled.state_dict()
    kept = [key for key in before if any(word in key for word in ("gradient", "taylor", "movement", "product", "fisher"))]
    assert len(kept) == 8 and all(torch.equal(after[key], before[key]) for key in kept)


# ---- state ----


def test_the_first_1024_samples_are_kept_and_no_more():
    """Every activation of a training kept would fill the memory."""
    model = Flat()
    recorder = Recorder([Watched("inner", model.inner, ("unit_samples", "labels"), (1, 3, 2))])
    labels, inputs = torch.arange(3 * 400), torch.randn(3 * 400, 2, 6)
    forward = model.forward
    model.forward = lambda inputs, labels: forward(inputs)
    with recorder.watching(model):
        for rows, names in zip(inputs.split(400), labels.split(400), strict=True):
            model(rows, labels=names)
    stats = recorder.stats("inner")
    assert stats["labels"].tolist() == list(range(1024)) and stats["unit_samples"].shape == (1024, 3)
    torch.testing.assert_close(stats["unit_samples"], inputs[:1024].mean(1).unflatten(-1, (3, 2)).mean(-1))
    recorder.reset()
    with pytest.raises(RecipeError, match="nothing is recorded"):
        recorder.stats("inner")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_room_for_samples(ranks, monkeypatch):
    """Each rank keeping 1,024 would make the scores, and what they take, depend on the number of ranks."""
    model = Flat()
    recorder = Recorder([Watched("inner", model.inner, ("unit_samples", "labels"), (1, 3, 2))])
    forward = model.forward
    model.forward = lambda inputs, labels: forward(inputs)
    monkeypatch.setattr("hf_shrink.pruning.statistics.rank_and_count", lambda: (0, ranks))
    with recorder.watching(model):
        for _ in range(3):
            model(torch.randn(500, 2, 6), labels=torch.zeros(500, dtype=torch.int64))
    assert recorder.state_dict()["inner/sample_count"].tolist() == [1024 // ranks]


@pytest.mark.parametrize("labels", [None, torch.rand(4), torch.zeros(4, 5, dtype=torch.int64)])
def test_without_one_class_a_sample_there_is_no_information_about_it(labels):
    model = Flat()
    forward = model.forward
    model.forward = lambda inputs, labels: forward(inputs)
    recorder = Recorder([Watched("inner", model.inner, ("unit_samples", "labels"), (1, 3, 2))])
    with recorder.watching(model), pytest.raises(RecipeError, match="inner: needs labels, one class for each of 4 samples"):
        model(torch.randn(4, 5, 6), labels=labels)


def test_a_resumed_recorder_goes_on_bit_for_bit(tmp_path):
    """Statistics that start again at zero, or lose bits in the file, give other masks than the run that was not interrupted."""
    model = tiny.tiny_classifier("bert")
    whole, first, second = (recorder_of(model) for _ in range(3))
    for recorder, seeds in ((whole, (1, 2, 3, 4)), (first, (1, 2))):
        with recorder.watching(model):
            for seed in seeds:
                show(model, recorder, batch(4, seed=seed))
    save_file(first.state_dict(), tmp_path / "statistics.safetensors")
    second.load_state_dict(load_file(tmp_path / "statistics.safetensors"))
    with second.watching(model):
        for seed in (3, 4):
            show(model, second, batch(4, seed=seed))
    for name in ("weight", "group"):
        expected = whole.stats(name)
        assert set(second.stats(name)) == set(expected) and len(expected) >= 6
        assert all(torch.equal(second.stats(name)[key], value) for key, value in expected.items())
        assert all(torch.equal(whole.stats(name)[key], value) for key, value in expected.items()), "reading changes nothing"


def test_state_of_another_model_is_refused_and_changes_nothing():
    model, wide = tiny.tiny_classifier("bert"), tiny.tiny_classifier("bert", ffn=128)
    recorder = recorder_of(model)
    before, other = recorder.state_dict(), recorder_of(wide).state_dict()
    for state, says in (
        (other, r"\d+ of another size \['group/"),
        (before | {"x/gradient_sum": torch.zeros(1)}, r"1 unknown \['x/gradient_sum'\]"),
        ({key: value for key, value in before.items() if key != "weight/token_count"}, r"1 missing \['weight/token_count'\]"),
    ):
        with pytest.raises(IntegrityError, match=says):
            recorder.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in recorder.state_dict().items())


# ---- what cannot be recorded ----


def test_what_nothing_is_known_of_is_refused():
    """Zeros would score, and the first weights would go."""
    model = tiny.tiny_classifier("bert")
    module = reader(model, "bert")
    with pytest.raises(RecipeError, match=r"w: unknown statistic input_norms. Known: .*input_norm"):
        Watched("w", module, ("input_norms",))
    with pytest.raises(RecipeError, match="w: unit_norm belong to units; say how"):
        Watched("w", module, ("unit_norm",))
    with pytest.raises(MismatchError, match="w: 1 x 4 x 8 units of 64 input features"):
        Watched("w", module, ("unit_norm",), (1, 4, 8))
    recorder = Recorder([Watched("w", module, ("gradient", "key"))])
    with pytest.raises(RecipeError, match="w: gradient: nothing is recorded yet; it takes batches of data and backward passes"):
        recorder.stats("w")
    with pytest.raises(RecipeError, match="no watched weight has a gradient; call it after backward"):
        recorder.observe_gradients()
    module.weight.requires_grad_(False)
    with pytest.raises(RecipeError, match="w: gradient needs gradients, but this weight takes none"):
        recorder.observe_gradients()
    with pytest.raises(RecipeError, match="w is no part of this Flat"), recorder.watching(Flat()):
        pass


def test_the_key_needs_no_data():
    model = tiny.tiny_classifier("bert")
    module = reader(model, "bert")
    recorder = Recorder([Watched("w", module, ("key",))], seed=3)
    assert not recorder.wants_data and not recorder.wants_gradients
    assert set(recorder.stats("w")) == {"key"}
    assert recorder_of(model).wants_data and recorder_of(model).wants_gradients
    assert not Recorder([Watched("w", module, ("input_norm",))]).wants_gradients


# ---- several processes ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder where each of two gloo ranks wrote what it found."""
    folder = tmp_path_factory.mktemp("statistics")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.pruning.statistics_worker", str(folder)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def test_two_ranks_have_equal_statistics_and_those_of_one_process(ranks):
    """Each rank sees other data: masks made from its own half would differ, and the weights drift apart."""
    found = [load_file(ranks / f"stats-{rank}.safetensors") for rank in (0, 1)]
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 12
    assert all(torch.equal(found[1][key], value) for key, value in found[0].items())
    model = tiny.tiny_classifier("bert")
    alone = recorder_of(model)
    with alone.watching(model):
        for step in (0, 1):
            show(model, alone, batch(8, seed=step))
    for name in ("weight", "group"):
        for key, value in alone.stats(name).items():
            got = found[0][f"{name}/{key}"]
            if key in ("labels", "unit_samples"):
                got, value = got.sort(dim=0).values, value.sort(dim=0).values
            torch.testing.assert_close(got, value, rtol=2e-3, atol=1e-7, msg=f"{name} {key}")


def test_two_ranks_resume_bit_for_bit_and_one_process_can_go_on_from_their_state(ranks):
    """State of rank 0 alone would count its data twice and forget what the other saw."""
    for rank in (0, 1):
        assert json.loads((ranks / f"resumed-{rank}.json").read_text()) == {"stats": True, "state": True}
    model = tiny.tiny_classifier("bert")
    alone = recorder_of(model)
    alone.load_state_dict(load_file(ranks / "state.safetensors"))
    found = load_file(ranks / "stats-0.safetensors")
    for name in ("weight", "group"):
        for key, value in alone.stats(name).items():
            torch.testing.assert_close(value, found[f"{name}/{key}"], msg=f"{name} {key}")
