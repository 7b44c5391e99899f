"""The hidden width: the cut model computes what its definition says, whatever the family, and nothing else has changed."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
)

from hf_shrink.errors import MismatchError
from hf_shrink.pruning.hidden import cut_hidden
from tests import tiny

WRITERS = {
    "bert": ("embeddings.*_embeddings", "attention.output.dense", "output.dense", "pooler.dense"),
    "roberta": ("embeddings.*_embeddings", "attention.output.dense", "output.dense", "classifier.dense"),
    "electra": ("embeddings_project", "attention.output.dense", "output.dense", "classifier.dense"),
    "distilbert": ("embeddings.*_embeddings", "attention.out_lin", "ffn.lin2", "pre_classifier"),
    "gpt2": ("wte", "wpe", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("embed_in", "attention.dense", "mlp.dense_4h_to_h"),
    "llama": ("embed_tokens", "self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("embed_tokens", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("embed_tokens", "self_attn.o_proj", "mlp.down_proj"),
    "t5": ("shared", "Attention.o", "DenseReluDense.wo", "classification_head.dense"),
    "vit": ("patch_embeddings.projection", "attention.o_proj", "mlp.fc2"),
}
"""What writes into the hidden width, by the end of its name; read off the modelling code, not off ``families``."""


class KeptNorm(nn.Module):
    """A LayerNorm that sees only some features and puts out zero for the others."""

    def __init__(self, norm: nn.LayerNorm, keep: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.keep = norm, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen, out = x[..., self.keep], torch.zeros_like(x)
        normed = (seen - seen.mean(-1, keepdim=True)) / (seen.var(-1, unbiased=False, keepdim=True) + self.norm.eps).sqrt()
        out[..., self.keep] = normed * self.norm.weight[self.keep] + self.norm.bias[self.keep]
        return out


@torch.no_grad()
def masked(model, family: str, keep: torch.Tensor):
    """The slow way round: every removed dimension is zero in all that writes it, and LayerNorms pass it over."""
    model = copy.deepcopy(model)
    written = 0
    for name, module in list(model.named_modules()):
        ends = [end.split("*")[-1] for end in WRITERS[family]]
        if any(name.endswith(end) for end in ends):
            written += 1
            out_dim = 1 if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D" else 0
            module.weight.movedim(out_dim, 0)[~keep] = 0
            if getattr(module, "bias", None) is not None:
                module.bias[~keep] = 0
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (len(keep),):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, KeptNorm(module, keep))
        if hasattr(module, "variance_epsilon") and module.weight.shape == keep.shape:
            module.variance_epsilon *= float(keep.float().mean())  # the mean runs over the removed zeros, too: so does epsilon
    assert written >= 5, "the table of names has gone stale"
    if family == "vit":
        model.vit.embeddings.cls_token[..., ~keep] = 0
        model.vit.embeddings.position_embeddings[..., ~keep] = 0
    return model


@torch.no_grad()
def rough(model):
    """With weights and biases that are not zero, so that every dimension matters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def some(width: int, of: int = 32) -> torch.Tensor:
    keep = torch.zeros(of, dtype=torch.bool)
    keep[torch.randperm(of, generator=torch.Generator().manual_seed(5))[:width]] = True
    return keep


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("width", [24, 12])
def test_the_cut_model_is_the_masked_one_with_norms_over_what_is_left(family, width):
    """A wrong axis of a square weight, a head cut in two, or a norm over the wrong count: all load, run and train."""
    model, inputs, keep = rough(tiny.tiny_classifier(family)), tiny.tiny_inputs(family, rows=4), some(width)
    small = cut_hidden(model, keep)
    assert small.config.hidden_size == width and small.num_parameters() < model.num_parameters()
    torch.testing.assert_close(logits(small, inputs), logits(masked(model, family, keep), inputs), atol=2e-5, rtol=1e-4)
    assert float((logits(small, inputs) - logits(model, inputs)).abs().max()) > 1e-2


def test_tiny_bert_sliced_by_hand():
    model, keep = rough(tiny.tiny_classifier(ffn=32)), some(16)  # every projection is square: the axis must be known
    before, after = model.state_dict(), cut_hidden(model, keep).state_dict()
    rows = (
        "attention.output.dense.weight",
        "output.dense.weight",
        "output.dense.bias",
        "pooler.dense.bias",
        "LayerNorm.weight",
    )
    columns = (
        "query.weight",
        "key.weight",
        "value.weight",
        "intermediate.dense.weight",
        "_embeddings.weight",
        "classifier.weight",
    )
    unchanged = ("query.bias", "key.bias", "value.bias", "intermediate.dense.bias", "classifier.bias")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.endswith("pooler.dense.weight"):
            value = value[keep][:, keep]
        elif name.endswith((*rows, "LayerNorm.bias")):
            value = value[keep]
        elif name.endswith(columns):
            value = value[:, keep]
        else:
            assert name.endswith(unchanged), name
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "t5"])
def test_a_model_whose_removed_dimensions_are_zero_keeps_its_outputs(family):
    """Without the factor at each RMSNorm the root mean square would be taken over fewer numbers, and all grow."""
    keep = some(16)
    model, inputs = masked(rough(tiny.tiny_classifier(family)), family, keep), tiny.tiny_inputs(family)
    torch.testing.assert_close(logits(cut_hidden(model, keep), inputs), logits(model, inputs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "factor"), [("t5", math.sqrt(2)), ("llama", 1.0)])
def test_the_language_model_of_t5_divides_by_the_root_of_its_width(family, factor):
    keep = some(16)
    model = AutoModelForSeq2SeqLM.from_config(tiny.tiny_config("t5")) if family == "t5" else tiny.tiny_causal_lm(family)
    model = masked(rough(model.eval()), family, keep)
    inputs = tiny.tiny_inputs(family) | ({"decoder_input_ids": torch.tensor([[0, 5], [0, 7]])} if family == "t5" else {})
    small = cut_hidden(model, keep)
    torch.testing.assert_close(logits(small, inputs), factor * logits(model, inputs), atol=5e-5, rtol=1e-4)
    assert small.get_output_embeddings().weight.shape == (len(tiny.VOCABULARY), 16)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_tied_tables_stay_tied(family):
    small = cut_hidden(tiny.tiny_causal_lm(family), some(16))
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert small.get_input_embeddings().weight.shape == (len(tiny.VOCABULARY), 16)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_generation_with_a_cache_equals_generation_without(family):
    """Rotary positions that follow the narrow config would be of another size than the heads."""
    small = cut_hidden(rough(tiny.tiny_causal_lm(family)), some(16))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])
    assert torch.equal(small.generate(ids, use_cache=True, **options), small.generate(ids, use_cache=False, **options))


def test_a_head_as_wide_as_the_model_keeps_its_size():
    """With one head the two numbers are the same, but only one of them is cut."""
    config = BertConfig(hidden_size=32, num_attention_heads=1, num_hidden_layers=2, intermediate_size=64, vocab_size=20)
    model, keep = rough(BertForSequenceClassification(config).eval()), some(16)
    small, inputs = cut_hidden(model, keep), tiny.tiny_inputs("bert")
    assert small.bert.encoder.layer[0].attention.self.attention_head_size == 32
    torch.testing.assert_close(logits(small, inputs), logits(masked(model, "bert", keep), inputs), atol=2e-5, rtol=1e-4)


def test_a_width_that_the_config_derives_from_the_hidden_one_stays():
    """GPT-2 reads n_inner None as four times the hidden width: the neurons would be cut along without a word."""
    small = cut_hidden(tiny.tiny_classifier("gpt2", ffn=None), some(16))
    assert small.transformer.h[0].mlp.c_fc.weight.shape == (16, 128) and small.config.n_inner == 128


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_the_original_stays_and_shares_nothing(family):
    model = tiny.tiny_classifier(family).train()
    next(iter(model.parameters())).requires_grad_(False)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    small = cut_hidden(model, some(24))
    assert small.training and not next(iter(small.parameters())).requires_grad
    assert sum(p.requires_grad for p in small.parameters()) == sum(p.requires_grad for p in model.parameters())
    for parameter in small.parameters():
        parameter.data.zero_()
    assert model.config.to_dict() == config
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items()) and before


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_shapes_are_the_same_without_weights(family):
    """A plan is made on the meta device."""
    real = cut_hidden(tiny.tiny_classifier(family), some(24))
    with torch.device("meta"):
        model = tiny.tiny_classifier(family)
    outline = cut_hidden(model, torch.arange(32) < 24)
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_dtype_is_kept():
    small = cut_hidden(tiny.tiny_classifier("llama").to(torch.bfloat16), some(16))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


def test_electra_embeddings_follow_only_where_they_are_as_wide():
    """As wide as the model they have no projection between: cut alone, the rest could not read them."""
    same = cut_hidden(tiny.tiny_classifier("electra", embedding_size=32), some(24))
    assert same.electra.embeddings.word_embeddings.weight.shape[1] == 24 == same.config.embedding_size
    other = cut_hidden(tiny.tiny_classifier("electra"), some(24))
    assert other.electra.embeddings.word_embeddings.weight.shape[1] == 16 == other.config.embedding_size
    with pytest.raises(MismatchError, match=r"hidden width 16.*embeddings_project.*keep another width"):
        cut_hidden(tiny.tiny_classifier("electra"), some(16))
