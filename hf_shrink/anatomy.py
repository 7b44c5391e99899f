"""The words in which a model family is described: attention, stack, family. Paths are relative, as ``families`` says."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Attention:
    """One attention block of a layer.

    Attributes:
        module: whose attributes say how large a head is and how many there are.
        inputs: the projections whose outputs are the heads: query, key and value, or one that holds all three.
        output: the projection that reads the heads.
        packed: how one projection holds all three: ``thirds`` (all queries, all keys, all values) or ``heads`` (query, key
            and value of one head after another); empty where there are three projections.
        head_dim: attribute of ``module``: features of one head.
        counts: attributes of ``module`` that say how many heads there are.
        widths: attributes of ``module`` that say heads times ``head_dim``.
        position_bias: an embedding with one column a head, which the first layer of the stack looks up for all layers.
        shared: a head is the same one in every layer of the stack, because layers hand on what they know of its positions.
    """

    module: str
    inputs: tuple[str, ...]
    output: str
    packed: Literal["", "thirds", "heads"] = ""
    head_dim: str = "head_dim"
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    position_bias: str = ""
    shared: bool = False


@dataclass(frozen=True)
class Stack:
    """A ``ModuleList`` of layers that are alike.

    Attributes:
        layers: where it is.
        num_layers: config key that holds how many there are.
        attentions: the attention blocks of a layer; a decoder that also reads an encoder has two.
        ffn_in: the projections whose outputs are the neurons of the feed-forward block (two of them where it is gated; those
            that a model does not have are passed over).
        ffn_out: the projection that reads those neurons.
    """

    layers: str
    num_layers: str
    attentions: tuple[Attention, ...]
    ffn_in: tuple[str, ...]
    ffn_out: str


@dataclass(frozen=True)
class Family:
    """Where things are in one ``model_type``.

    Attributes:
        stacks: one, or encoder and decoder.
        ffn_width: config key that holds the number of neurons (GPT-2 reads None as four times the hidden width).
        embeddings: the modules that hold embeddings.
        num_heads: config key that holds the number of (query) heads.
        num_kv_heads: config key that holds the number of key-value heads, where queries share them in groups.
        head_dim: config key that fixes the size of a head, so that a config can say fewer heads; None where a model is built
            with ``hidden width / num_heads``.
    """

    stacks: tuple[Stack, ...]
    ffn_width: str
    embeddings: tuple[str, ...]
    num_heads: str = "num_attention_heads"
    num_kv_heads: str | None = None
    head_dim: str | None = None
