"""What model families look like: where their layers, feed-forward blocks and embeddings live.

Paths are relative: ``layers`` and ``embeddings`` to the base model (``model.base_model``), the others to one layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.tables import nearest


@dataclass(frozen=True)
class Family:
    """Where things are in one ``model_type``.

    Attributes:
        layers: the ``ModuleList`` of transformer layers.
        num_layers: config key that holds how many there are.
        ffn_in: the projections whose outputs are the neurons of the feed-forward block (two of them where it is gated).
        ffn_out: the projection that reads those neurons.
        ffn_width: config key that holds the number of neurons (GPT-2 reads None as four times the hidden width).
        embeddings: the modules that hold embeddings.
    """

    layers: str
    num_layers: str
    ffn_in: tuple[str, ...]
    ffn_out: str
    ffn_width: str
    embeddings: tuple[str, ...]


_BERT = Family(
    layers="encoder.layer",
    num_layers="num_hidden_layers",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    ffn_width="intermediate_size",
    embeddings=("embeddings",),
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": Family(
        layers="transformer.layer",
        num_layers="n_layers",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        ffn_width="hidden_dim",
        embeddings=("embeddings",),
    ),
    "gpt2": Family(
        layers="h",
        num_layers="n_layer",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        ffn_width="n_inner",
        embeddings=("wte", "wpe"),
    ),
    "llama": Family(
        layers="layers",
        num_layers="num_hidden_layers",
        ffn_in=("mlp.gate_proj", "mlp.up_proj"),
        ffn_out="mlp.down_proj",
        ffn_width="intermediate_size",
        embeddings=("embed_tokens",),
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


def layers_of(model: Any, family: Family) -> nn.ModuleList:
    """The transformer layers of ``model``, first to last."""
    try:
        layers = model.base_model.get_submodule(family.layers)
    except AttributeError:
        layers = None
    if not isinstance(layers, nn.ModuleList):
        raise MismatchError(
            f"{type(model).__name__}: its config says {model.config.model_type!r}, but it has no layers at {family.layers!r}. "
            "Pass the plain transformers model, without a wrapper around it."
        )
    return layers


def named_layers(model: Any, family: Family) -> dict[str, nn.Module]:
    """The transformer layers by their full name in ``model``, first to last; a layer that is used twice appears once."""
    found = {id(layer) for layer in layers_of(model, family)}
    return {name: module for name, module in model.named_modules() if id(module) in found}


def embedding_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that belong to an ``nn.Embedding`` (word, position, type), by name, each shared one once."""
    owners = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    return {name: p for name, p in model.named_parameters() if id(p) in owners}
