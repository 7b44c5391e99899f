"""Tiny models, a tiny tokenizer and a task that can be learnt, all made in memory from configs and a seed."""

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

COLOURS = ("red", "green", "blue")
FILLERS = ("a", "the", "of", "house", "tree", "river", "stone", "cloud", "bird", "road", "lamp", "door", "song")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: i for i, word in enumerate((*SPECIALS, *COLOURS, *FILLERS))}

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama")
"""Those that tests of every room go through."""

MORE_FAMILIES = ("electra", "gpt_neox", "qwen2", "qwen3", "t5", "vit")
"""The rest of the table, for tests of structures and loading."""

ALL_FAMILIES = (*FAMILIES, *MORE_FAMILIES)


def tiny_config(family: str, *, layers: int = 2, hidden: int = 32, ffn: int = 64, **more: Any) -> PreTrainedConfig:
    """A config of ``family`` with four attention heads over the tiny vocabulary."""
    vocabulary = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    if family in {"bert", "roberta", "electra"}:
        make = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}[family]
        if family == "electra":
            more = {"embedding_size": 16} | more
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
    if family == "t5":
        return T5Config(
            d_model=hidden,
            d_kv=hidden // 4,
            d_ff=ffn,
            num_layers=layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            eos_token_id=3,
            **vocabulary | more,
        )
    if family == "vit":
        return ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=ffn,
            image_size=8,
            patch_size=4,
            **more,
        )
    if family == "gpt_neox":
        return GPTNeoXConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=ffn,
            max_position_embeddings=64,
            bos_token_id=2,
            eos_token_id=3,
            **vocabulary | more,
        )
    make = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
    if family == "qwen3":
        more = {"head_dim": hidden // 4} | more
    return make(
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
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    return auto.from_config(tiny_config(family, **names | config)).eval()


def tiny_inputs(family: str, *, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch for ``tiny_classifier``: five tokens a row with the last one padded in the first row, or images of 8 x 8."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}
    ids = torch.randint(4, len(VOCABULARY), (rows, 5), generator=generator)
    ids[:, -1] = 3
    mask = torch.ones_like(ids)
    ids[0, -2:], mask[0, -1] = torch.tensor([3, 0]), 0
    return {"input_ids": ids, "attention_mask": mask}


def tiny_causal_lm(family: str = "gpt2", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """An untrained causal language model in float32, the same for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **config)).eval()


def tiny_tokenizer(*, unused: int = 0, mask: bool = False) -> PreTrainedTokenizerFast:
    """Whole words of the tiny vocabulary; frames a text as ``[CLS] text [SEP]`` and pads on the right.

    ``unused`` words more follow that no text has; with ``mask`` the last word is ``[MASK]``.
    """
    words = VOCABULARY | {f"unused{i}": len(VOCABULARY) + i for i in range(unused)}
    if mask:
        words["[MASK]"] = len(words)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
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
        mask_token="[MASK]" if mask else None,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_lm_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """Whole words of the tiny vocabulary and nothing around them; like GPT-2's it has an end of text and no padding token."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
        **{"model_max_length": 64} | more,
    )


def other_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """The same words in halves (``hou``, ``##se``), under other ids; it has an end of text and a padding token."""
    halves = sorted({half for word in (*COLOURS, *FILLERS) for half in _halves(word)})
    words = {token: i for i, token in enumerate(("<unk>", "<end>", "<pad>", *halves))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="<unk>", max_input_chars_per_word=20))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
        **{"model_max_length": 64} | more,
    )


def _halves(word: str) -> tuple[str, ...]:
    cut = (len(word) + 1) // 2
    return (word[:cut], f"##{word[cut:]}") if len(word) > 1 else (word,)


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


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode with larger weights, and biases that are not zero, so that every unit matters to the output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()
