"""What model families look like: where their layers, attention heads, feed-forward blocks and embeddings live.

Paths are relative: ``layers`` and ``embeddings`` to the base model (``model.base_model``), those inside a layer to the layer.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_shrink.anatomy import Attention, Family, Stack
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.tables import nearest

_POSITIONS = ("position_embeddings", "wpe")

_BERT = Family(
    stacks=(
        Stack(
            layers="encoder.layer",
            num_layers="num_hidden_layers",
            attentions=(
                Attention(
                    module="attention.self",
                    inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
                    output="attention.output.dense",
                    head_dim="attention_head_size",
                    counts=("num_attention_heads",),
                    widths=("all_head_size",),
                ),
            ),
            ffn_in=("intermediate.dense",),
            ffn_out="output.dense",
        ),
    ),
    ffn_width="intermediate_size",
    embeddings=("embeddings",),
)

_LLAMA = Family(
    stacks=(
        Stack(
            layers="layers",
            num_layers="num_hidden_layers",
            attentions=(
                Attention(
                    module="self_attn",
                    inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    output="self_attn.o_proj",
                ),
            ),
            ffn_in=("mlp.gate_proj", "mlp.up_proj"),
            ffn_out="mlp.down_proj",
        ),
    ),
    ffn_width="intermediate_size",
    embeddings=("embed_tokens",),
    num_kv_heads="num_key_value_heads",
    head_dim="head_dim",
)


def _t5_attention(block: str, position_bias: str = "") -> Attention:
    return Attention(
        module=block,
        inputs=(f"{block}.q", f"{block}.k", f"{block}.v"),
        output=f"{block}.o",
        head_dim="key_value_proj_dim",
        counts=("n_heads",),
        widths=("inner_dim",),
        position_bias=position_bias,
        shared=True,
    )


def _t5_stack(layers: str, num_layers: str, ffn: str, *cross: Attention) -> Stack:
    block = "layer.0.SelfAttention"
    return Stack(
        layers=layers,
        num_layers=num_layers,
        attentions=(_t5_attention(block, f"{block}.relative_attention_bias"), *cross),
        ffn_in=(f"{ffn}.wi", f"{ffn}.wi_0", f"{ffn}.wi_1"),
        ffn_out=f"{ffn}.wo",
    )


FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        stacks=(
            Stack(
                layers="transformer.layer",
                num_layers="n_layers",
                attentions=(
                    Attention(
                        module="attention",
                        inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                        output="attention.out_lin",
                        head_dim="attention_head_size",
                        counts=("n_heads",),
                    ),
                ),
                ffn_in=("ffn.lin1",),
                ffn_out="ffn.lin2",
            ),
        ),
        ffn_width="hidden_dim",
        embeddings=("embeddings",),
        num_heads="n_heads",
    ),
    "gpt2": Family(
        stacks=(
            Stack(
                layers="h",
                num_layers="n_layer",
                attentions=(
                    Attention(
                        module="attn",
                        inputs=("attn.c_attn",),
                        output="attn.c_proj",
                        packed="thirds",
                        counts=("num_heads",),
                        widths=("split_size",),
                    ),
                ),
                ffn_in=("mlp.c_fc",),
                ffn_out="mlp.c_proj",
            ),
        ),
        ffn_width="n_inner",
        embeddings=("wte", "wpe"),
        num_heads="n_head",
    ),
    "gpt_neox": Family(
        stacks=(
            Stack(
                layers="layers",
                num_layers="num_hidden_layers",
                attentions=(
                    Attention(
                        module="attention",
                        inputs=("attention.query_key_value",),
                        output="attention.dense",
                        packed="heads",
                        head_dim="head_size",
                    ),
                ),
                ffn_in=("mlp.dense_h_to_4h",),
                ffn_out="mlp.dense_4h_to_h",
            ),
        ),
        ffn_width="intermediate_size",
        embeddings=("embed_in",),
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": Family(
        stacks=(
            _t5_stack("encoder.block", "num_layers", "layer.1.DenseReluDense"),
            _t5_stack(
                "decoder.block", "num_decoder_layers", "layer.2.DenseReluDense", _t5_attention("layer.1.EncDecAttention")
            ),
        ),
        ffn_width="d_ff",
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        num_heads="num_heads",
        head_dim="d_kv",
    ),
    "vit": Family(
        stacks=(
            Stack(
                layers="layers",
                num_layers="num_hidden_layers",
                attentions=(
                    Attention(
                        module="attention",
                        inputs=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                        output="attention.o_proj",
                        counts=("num_attention_heads",),
                    ),
                ),
                ffn_in=("mlp.fc1",),
                ffn_out="mlp.fc2",
            ),
        ),
        ffn_width="intermediate_size",
        embeddings=("embeddings",),
        head_dim="head_dim",
    ),
}


def family_of(model: Any, where: str) -> Family:
    """The family of a transformers model; ``where`` names what needs it, for the error."""
    name = model.config.model_type
    if name not in FAMILIES:
        raise RecipeError(
            f"{where}: model family {name!r} is unknown.{nearest(name, FAMILIES)} Known: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[name]


def stacks_of(model: Any, family: Family) -> list[tuple[Stack, nn.ModuleList]]:
    """The stacks that ``model`` has, each with its layers; an encoder alone has no decoder."""
    found = []
    for stack in family.stacks:
        try:
            layers = model.base_model.get_submodule(stack.layers)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            found.append((stack, layers))
    if not found:
        raise MismatchError(
            f"{type(model).__name__}: its config says {model.config.model_type!r}, but it has no layers at "
            f"{family.stacks[0].layers!r}. Pass the plain transformers model, without a wrapper around it."
        )
    return found


def layers_of(model: Any, family: Family) -> list[nn.Module]:
    """The transformer layers of ``model``, first to last, of an encoder before those of its decoder."""
    return [layer for _, layers in stacks_of(model, family) for layer in layers]


def named_layers(model: Any, family: Family) -> dict[str, nn.Module]:
    """The transformer layers by their full name in ``model``, first to last; a layer that is used twice appears once."""
    found = {id(layer) for layer in layers_of(model, family)}
    return {name: module for name, module in model.named_modules() if id(module) in found}


def stack_by_layer(model: Any, family: Family) -> dict[str, Stack]:
    """For each name of ``named_layers`` the stack that describes it."""
    stacks = {id(layer): stack for stack, layers in stacks_of(model, family) for layer in layers}
    return {name: stacks[id(layer)] for name, layer in named_layers(model, family).items()}


def embedding_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that belong to an ``nn.Embedding`` (word, position, type), by name, each shared one once."""
    owners = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    return {name: p for name, p in model.named_parameters() if id(p) in owners}


def inner_size(model: Any) -> int:
    """Parameters outside the embeddings of words, going in and coming out: vocabularies are padded to different sizes."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    words = {id(end.weight): int(end.weight.numel()) for end in ends if end is not None}
    return int(model.num_parameters()) - sum(words.values())


def longest(model: nn.Module) -> int | None:
    """Positions that a table of learned positions offers, or None where positions are computed.

    A table with a padding row (RoBERTa) starts counting behind it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITIONS:
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
