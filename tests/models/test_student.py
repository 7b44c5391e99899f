"""Layer-drop: the right layers, a config that says so, an original that stays."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shrink.errors import RecipeError
from hf_shrink.families import family_of, layers_of
from hf_shrink.models.config import StudentConfig
from hf_shrink.models.student import drop_layers, kept_layers, layers_left
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier

IDS = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (6, 3, (0, 2, 5)),
        (12, 6, (0, 2, 4, 7, 9, 11)),
        (6, 2, (0, 5)),
        (6, 1, (0,)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (4, 3, (0, 1, 3)),
        (6, (1, 4), (1, 4)),
        (6, [5], (5,)),
    ],
)
def test_kept_layers_by_hand(total, layers, kept):
    assert kept_layers(total, layers) == kept


@pytest.mark.parametrize(
    ("total", "layers", "choice", "kept"),
    [
        (6, 3, "first", (0, 1, 2)),
        (6, 3, "last", (3, 4, 5)),
        (6, 3, "alternate", (0, 2, 4)),
        (12, 6, "alternate", (0, 2, 4, 6, 8, 10)),
        (12, 4, "alternate", (0, 3, 6, 9)),
        (7, 3, "alternate", (0, 2, 4)),
        (6, 4, "alternate", (0, 1, 2, 3)),
        (6, 6, "last", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_a_number_of_layers_by_name_of_the_choice(total, layers, choice, kept):
    assert kept_layers(total, layers, choice) == kept


def test_a_choice_without_a_number_would_be_ignored():
    for words in ({}, {"layers": (0, 2)}):
        with pytest.raises(RecipeError, match="layer_choice would be ignored"):
            StudentConfig(layer_choice="last", **words)
    assert layers_left(tiny_classifier("bert"), StudentConfig(layers=1, layer_choice="last")).config.num_hidden_layers == 1


def test_a_fit_without_a_layer_drop_would_be_ignored():
    with pytest.raises(RecipeError, match="reconstruct would be ignored; it fits the layers that a layer-drop leaves"):
        StudentConfig(reconstruct=True)
    for layers in (2, (0, 1)):
        with pytest.raises(RecipeError, match=r"student\.reconstruct would be ignored: student\.layers keeps every layer"):
            layers_left(tiny_classifier("bert"), StudentConfig(layers=layers, reconstruct=True))


def test_an_int_always_keeps_that_many_with_both_ends():
    """Rounding that maps two places to one layer would keep fewer than asked, or one twice."""
    for total in range(2, 50):
        for layers in range(2, total + 1):
            kept = kept_layers(total, layers)
            assert len(set(kept)) == layers and kept[0] == 0 and kept[-1] == total - 1 and list(kept) == sorted(kept)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (0, "1 to 6"),
        (7, "7 of 6"),
        (-1, "1 to 6"),
        ((), "0 to 5"),
        ((0, 12), "no layer 12.*0 to 5"),
        ((-1, 2), "no layer -1"),
        ((2, 2), "must rise"),
        ((3, 1), "must rise"),
    ],
)
def test_layers_that_cannot_be_meant_are_refused_with_the_valid_range(layers, says):
    with pytest.raises(RecipeError, match=says):
        kept_layers(6, layers)


def rebuilt(model, kept):
    """The second implementation: a fresh model of the smaller config, filled from a renamed state dict."""
    family = family_of(model, "test").stacks[0]
    config = copy.deepcopy(model.config)
    setattr(config, family.num_layers, len(kept))
    fresh = type(model)(config)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    renamed = {}
    for name, tensor in model.state_dict().items():
        start = f"{prefix}{family.layers}."
        if name.startswith(start):
            index, rest = name.removeprefix(start).split(".", 1)
            if int(index) not in kept:
                continue
            name = f"{start}{kept.index(int(index))}.{rest}"
        renamed[name] = tensor
    fresh.load_state_dict(renamed)
    return fresh.eval()


MODELS = [(tiny_classifier, f) for f in FAMILIES] + [(tiny_causal_lm, f) for f in ("gpt2", "llama", "bert")]


@pytest.mark.parametrize(("make", "family"), MODELS)
def test_the_copy_equals_a_model_built_from_the_smaller_config(make, family):
    model = make(family, layers=5)
    small = drop_layers(model, 3)
    second = rebuilt(model, [0, 2, 4])
    assert type(small) is type(model) and small.config.num_hidden_layers == 3 == len(layers_of(small, family_of(small, "")))
    assert small.state_dict().keys() == second.state_dict().keys()
    assert small.config.to_diff_dict() == second.config.to_diff_dict()
    with torch.no_grad():
        assert torch.equal(small(IDS).logits, second(IDS).logits)
        assert not torch.equal(small(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("make", "family"), MODELS)
def test_the_original_stays_and_shares_nothing(make, family):
    """Shared weights: training the student would train its teacher along."""
    model = make(family, layers=3)
    before = copy.deepcopy(model.state_dict())
    small = drop_layers(model, (0, 2))
    storages = {p.data_ptr() for p in model.parameters()}
    assert not storages & {p.data_ptr() for p in small.parameters()}
    for parameter in small.parameters():
        parameter.data.zero_()
    assert model.config.num_hidden_layers == 3 and model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_a_cache_equals_generation_without(family):
    """A layer that keeps its old number writes into a cache slot that is not there, or into another layer's."""
    small = drop_layers(tiny_causal_lm(family, layers=4), (1, 3))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = small.generate(IDS, use_cache=True, **options)
    assert torch.equal(cached, small.generate(IDS, use_cache=False, **options)) and cached.shape == (2, 13)
    numbers = [m.layer_idx for m in small.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    assert sorted(set(numbers)) == [0, 1]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_tied_ends_stay_tied(family):
    small = drop_layers(tiny_causal_lm(family, layers=3), 2)
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight


def test_one_entry_a_layer_in_the_config_is_cut_alike():
    config = LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=20)
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    small = drop_layers(LlamaForCausalLM(config), (1, 2))
    assert small.config.layer_types == ["sliding_attention", "full_attention"]
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_it_works_without_weights():
    """A plan is made on the meta device."""
    with torch.device("meta"):
        model = tiny_classifier(layers=4)
    assert drop_layers(model, 2).num_parameters() == drop_layers(tiny_classifier(layers=4), 2).num_parameters()


def test_an_unknown_family_is_refused():
    model = tiny_classifier()
    model.config.model_type = "brand-new"
    with pytest.raises(RecipeError, match="'brand-new'"):
        drop_layers(model, 1)


def test_the_global_random_state_is_left_alone():
    """Building the student must not change the seeds of what follows."""
    model = tiny_classifier()
    state = torch.get_rng_state()
    drop_layers(model, 1)
    assert torch.equal(state, torch.get_rng_state())
