"""Loading: nothing made up in silence, no foreign code, no unexplained error."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError, ResourceError, SecurityError
from hf_shrink.finite import check_finite
from hf_shrink.models.load import config_of, load_for, load_tokenizer
from tests.tiny import COLOURS, FAMILIES, tiny_causal_lm, tiny_classifier, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_classifier().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_classifier_comes_back_bit_for_bit_with_its_labels(family: str, tmp_path: Path):
    model = tiny_classifier(family)
    model.save_pretrained(tmp_path)
    again = load_for("text-classification", str(tmp_path), new_head=False, label_names=COLOURS)
    assert again.config.id2label == dict(enumerate(COLOURS)) and not again.training
    for (name, mine), (other, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(mine, theirs), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_headless_checkpoint_gets_a_new_head_and_nothing_else_new(family: str, tmp_path: Path):
    model = tiny_classifier(family)
    model.base_model.save_pretrained(tmp_path)
    fresh = load_for("text-classification", str(tmp_path), label_names=("yes", "no"), new_head=True)
    assert fresh.config.num_labels == 2 and fresh.config.label2id == {"yes": 0, "no": 1}
    ours = model.base_model.state_dict()
    for name, tensor in fresh.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, ours[name]), name


def test_a_head_of_another_size_is_replaced_only_where_asked(folder: Path):
    """ignore_mismatched_sizes alone would hand out a random head as if it were trained."""
    assert load_for("text-classification", str(folder), label_names=("a", "b"), new_head=True).classifier.out_features == 2
    edit_config(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(MismatchError, match="2 of another shape"):
        load_for("text-classification", str(folder), new_head=False)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_becomes_a_classifier_that_pads(family: str, tmp_path: Path):
    model = tiny_causal_lm(family)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    fresh = load_for("text-classification", str(tmp_path), label_names=COLOURS, new_head=True)
    ids = torch.tensor([[2, 5, 3, 3], [2, 5, 6, 7]])
    assert fresh(ids).logits.shape == (2, 3)


def test_a_head_of_another_task_may_be_left_over(tmp_path: Path):
    BertForMaskedLM(tiny_classifier().config).save_pretrained(tmp_path)
    load_for("text-classification", str(tmp_path), label_names=COLOURS, new_head=True)
    with pytest.raises(MismatchError, match=r"2 missing|unexpected"):
        load_for("text-classification", str(tmp_path), new_head=False)


@pytest.mark.parametrize("new_head", [True, False])
def test_a_missing_layer_is_an_error_with_counts_and_at_most_ten_keys(folder: Path, new_head: bool):
    """transformers fills the layer with random numbers and returns."""

    def drop(weights: dict) -> None:
        for name in [n for n in weights if ".layer.1." in n]:
            del weights[name]

    edit_weights(folder, drop)
    with pytest.raises(MismatchError) as caught:
        load_for("text-classification", str(folder), label_names=COLOURS, new_head=new_head)
    text = str(caught.value)
    assert "16 missing, 0 unexpected, 0 of another shape" in text and "(6 more)" in text
    assert text.count("bert.encoder.layer.1.") == 10 and text.count("\n") == 2


@pytest.mark.parametrize("headless", [True, False])
def test_layers_that_the_config_does_not_know_are_an_error(headless: bool, tmp_path: Path):
    """A 2-layer file under a 1-layer config loads without a word and is half the model."""
    model = tiny_classifier()
    (model.base_model if headless else model).save_pretrained(tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(MismatchError, match="0 missing, 16 unexpected"):
        load_for("text-classification", str(tmp_path), label_names=COLOURS, new_head=True)


def test_position_ids_of_old_checkpoints_are_harmless(folder: Path):
    edit_weights(folder, lambda w: w.update({"bert.embeddings.position_ids": torch.arange(64)[None]}))
    load_for("text-classification", str(folder), new_head=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(folder: Path, value: float):
    """A NaN in a query weight can leave the logits finite."""
    name = "bert.encoder.layer.1.attention.self.query.weight"

    def spoil(weights: dict) -> None:
        weights[name][3, :2] = value

    edit_weights(folder, spoil)
    with pytest.raises(NonFiniteError, match=f"2 of 1024 values of {name}"):
        load_for("text-classification", str(folder), new_head=False)


def test_check_finite_sees_an_infinity_of_either_sign_and_passes_a_whole_model():
    model = tiny_classifier()
    check_finite(model, "model")
    model.classifier.bias.data[0] = -float("inf")
    with pytest.raises(NonFiniteError, match=r"classifier\.bias"):
        check_finite(model, "model")


def test_weights_are_cast_to_the_dtype_asked_for(folder: Path):
    assert {p.dtype for p in load_for("text-classification", str(folder), new_head=False, dtype="bfloat16").parameters()} == {
        torch.bfloat16
    }


def test_labels_of_a_trained_model_are_compared_not_overwritten(folder: Path):
    """Overwriting the names of a teacher would hide that its classes stand in another order."""
    model = load_for("text-classification", str(folder), new_head=False, label_names=("blue", "red", "green"))
    assert list(model.config.id2label.values()) == list(COLOURS)
    with pytest.raises(MismatchError, match="has 3 labels red, green, blue; the data has 3: red, green, pink"):
        load_for("text-classification", str(folder), new_head=False, label_names=("red", "green", "pink"))


@pytest.mark.parametrize("names", [None, ("one",), ("a", "a")])
def test_a_new_head_needs_two_different_names(folder: Path, names):
    with pytest.raises(RecipeError, match="label_names"):
        load_for("text-classification", str(folder), new_head=True, label_names=names)


@pytest.mark.parametrize("load", [config_of, load_tokenizer, lambda r: load_for("text-classification", r, new_head=False)])
def test_what_is_not_cached_is_named_while_offline(load):
    with pytest.raises(ResourceError, match="'some-org/some-model': not in the cache"):
        load("some-org/some-model")


@pytest.mark.parametrize("load", [config_of, lambda r: load_tokenizer(r, download=False)])
def test_a_plan_asks_the_network_for_nothing(load, monkeypatch: pytest.MonkeyPatch):
    """Also while the Hub could be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def connect(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    with pytest.raises(ResourceError, match="not in the cache"):
        load("some-org/some-model")


def test_an_empty_folder_is_not_a_model(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"no config\.json"):
        config_of(str(tmp_path))


def test_pickled_weights_are_not_read(folder: Path):
    """A .bin file can run code when it is opened."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"no model\.safetensors"):
        load_for("text-classification", str(folder), new_head=False)


def test_a_torn_weights_file_is_called_damaged(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(IntegrityError, match="damaged"):
        load_for("text-classification", str(folder), new_head=False)


def test_a_config_that_is_no_json_is_explained(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(ResourceError, match="JSON"):
        config_of(str(folder))


def test_a_model_with_code_of_its_own_is_refused(folder: Path):
    (folder / "code.py").write_text("raise RuntimeError('ran')")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "code.C"})
    with pytest.raises(SecurityError, match="never runs"):
        config_of(str(folder))


def test_a_model_type_that_transformers_does_not_know_is_a_mismatch(folder: Path):
    edit_config(folder, model_type="brand-new")
    with pytest.raises(MismatchError, match="brand-new"):
        config_of(str(folder))


def test_a_bad_record_of_shapes_keeps_its_own_error(folder: Path):
    """Wrapped in another kind of error, it would leave with another exit code."""
    edit_config(folder, quantization_config={"quant_method": "hf_shrink", "shapes": {"nowhere": [1, 2]}})
    with pytest.raises(IntegrityError, match="'nowhere'"):
        load_for("text-classification", str(folder), new_head=False)


def test_attention_code_from_the_hub_is_refused(folder: Path):
    edit_config(folder, attn_implementation="some-org/some-kernel")
    with pytest.raises(SecurityError, match="code from the Hub"):
        config_of(str(folder))


def test_loading_says_nothing_where_stderr_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tiny_classifier().base_model.save_pretrained(tmp_path)
    capfd.readouterr()
    load_for("text-classification", str(tmp_path), label_names=COLOURS, new_head=True)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_padding_pads_with_its_last_token(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "[SEP]"


def test_config_of_takes_the_labels_of_a_new_head(folder: Path):
    assert config_of(str(folder), label_names=("a", "b")).num_labels == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_knows_the_classes_in_another_order_is_turned(family: str, tmp_path: Path):
    """Renamed as it is, a head that has learnt red would start by calling it blue."""
    model = tiny_classifier(family, labels=COLOURS[::-1])
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 8, 3]])
    turned = load_for("text-classification", str(tmp_path), label_names=COLOURS, new_head=True)
    with torch.no_grad():
        expected, found = model(ids).logits.flip(-1), turned(ids).logits
    assert turned.config.id2label == dict(enumerate(COLOURS))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_keeps_its_own_head_and_learns_the_end_of_a_text(tmp_path: Path, family: str):
    """Padding with the end-of-text token makes it the one token whose embedding gets no gradient."""
    model = tiny_causal_lm(family, pad_token_id=3, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    again = load_for("causal-lm", str(tmp_path), new_head=True, label_names=())
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    ids = torch.tensor([[5, 3, 6]])
    again(input_ids=ids, labels=ids).loss.backward()
    assert again.get_input_embeddings().weight.grad[3].abs().sum() > 0


def test_a_checkpoint_without_the_head_of_a_language_model_is_refused(tmp_path: Path):
    """A random head that is not announced as new would be fine-tuned as if it knew something."""
    tiny_causal_lm("llama", tie_word_embeddings=False).base_model.save_pretrained(tmp_path)
    with pytest.raises(MismatchError, match="lm_head"):
        load_for("causal-lm", str(tmp_path), new_head=True, label_names=())


@pytest.mark.parametrize(("family", "named"), [("bert", False), ("bert", True), ("llama", False)])
def test_a_folder_without_a_tokenizer_gets_none_made_up(family: str, named: bool, tmp_path: Path):
    """transformers makes one of BERT's special tokens alone: every word would be unknown, and it would be published."""
    tiny_classifier(family).save_pretrained(tmp_path)
    if named:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ResourceError, match="tokenizer beside it"):
        load_tokenizer(str(tmp_path))
