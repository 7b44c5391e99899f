"""How the recorder of statistics goes through training: modes, checkpoints, overflows, resume and ranks. What these prevent:
statistics of evaluations or of other models, and sums that a resume or a second rank changes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.statistics import Recorder, Watched
from tests import tiny
from tests.pruning.statistics_worker import GRADIENTS, batch, recorder_of, show
from tests.pruning.test_statistics import PRODUCTS, Flat, gate_gradients, reader
from tests.two_ranks import run_on_two


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
    recorder = Recorder([Watched("w", module, ("key",), seed=3)])
    assert not recorder.wants_data and not recorder.wants_gradients
    assert set(recorder.stats("w")) == {"key"}
    assert recorder_of(model).wants_data and recorder_of(model).wants_gradients
    assert not Recorder([Watched("w", module, ("input_norm",))]).wants_gradients


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder where each of two gloo ranks wrote what it found."""
    folder = tmp_path_factory.mktemp("statistics")
    run_on_two("tests.pruning.statistics_worker", folder)
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
