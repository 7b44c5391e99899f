"""Tiny models, a tiny tokenizer and a task that can be learnt, all made in memory from configs and a seed."""

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

COLOURS = ("red", "green", "blue")
FILLERS = ("a", "the", "of", "house", "tree", "river", "stone", "cloud", "bird", "road", "lamp", "door", "song")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: i for i, word in enumerate((*SPECIALS, *COLOURS, *FILLERS))}

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama")


def tiny_config(family: str, *, layers: int = 2, hidden: int = 32, ffn: int = 64, **more: Any) -> PreTrainedConfig:
    """A config of ``family`` with four attention heads over the tiny vocabulary."""
    vocabulary = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    if family in {"bert", "roberta"}:
        make = BertConfig if family == "bert" else RobertaConfig
        return make(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=ffn,
            max_position_embeddings=64,
            **vocabulary | more,
        )
    if family == "distilbert":
        return DistilBertConfig(
            dim=hidden, n_layers=layers, n_heads=4, hidden_dim=ffn, max_position_embeddings=64, **vocabulary | more
        )
    if family == "gpt2":
        return GPT2Config(
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            n_inner=ffn,
            n_positions=64,
            bos_token_id=2,
            eos_token_id=3,
            **vocabulary | more,
        )
    assert family == "llama", family
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=ffn,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        **vocabulary | more,
    )


def tiny_classifier(
    family: str = "bert", *, seed: int = 0, labels: tuple[str, ...] = COLOURS, **config: Any
) -> PreTrainedModel:
    """An untrained sequence classifier in float32, the same for the same seed, with real label names."""
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return AutoModelForSequenceClassification.from_config(tiny_config(family, **names | config)).eval()


def tiny_causal_lm(family: str = "gpt2", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """An untrained causal language model in float32, the same for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **config)).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the tiny vocabulary; frames a text as ``[CLS] text [SEP]`` and pads on the right."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def colour_texts(rows: int, *, seed: int = 0) -> Dataset:
    """``text`` of 3 to 12 filler words around one colour, ``label`` the colour's index: learnable in seconds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    texts, labels = [], []
    for _ in range(rows):
        words = [FILLERS[draw(len(FILLERS))] for _ in range(3 + draw(10))]
        label = draw(len(COLOURS))
        words.insert(draw(len(words) + 1), COLOURS[label])
        texts.append(" ".join(words))
        labels.append(label)
    return Dataset.from_dict({"text": texts, "label": labels})


def colour_tokens(rows: int, *, seed: int = 0) -> Dataset:
    """``colour_texts`` after the tiny tokenizer: ``input_ids``, ``attention_mask``, ``labels`` (ragged lengths)."""
    tokenizer = tiny_tokenizer()
    data = colour_texts(rows, seed=seed).rename_column("label", "labels")
    return data.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
