"""How large an int8 graph will be, from shapes alone."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from hf_shrink.families import embedding_parameters
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_graph import is_tied
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import oriented, projections

_FRAME = 21_000
"""Nodes outside the layers."""
_LAYERS: Mapping[str, int] = {
    "bert": 33_100,
    "roberta": 34_500,
    "electra": 34_500,
    "distilbert": 34_800,
    "gpt2": 49_000,
    "gpt_neox": 45_400,
    "llama": 64_900,
    "qwen2": 65_900,
    "qwen3": 71_400,
}
"""Nodes and names of one layer of an int8 graph, measured on graphs of one and three layers."""
_STATIC = 4_200
"""What the ranges of ``mode: static`` add to a layer."""


def tables_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Embeddings that become int8: all, but a table that is also the output layer, which stays precise."""
    tied = model.get_input_embeddings().weight if is_tied(model) else None
    return tuple(name for name, parameter in embedding_parameters(model).items() if parameter is not tied)


def onnx_bytes(model: PreTrainedModel, config: QuantizationConfig) -> int:
    """Bytes of ``onnx/``: the int8 graph, and the float one where it is kept.

    Args:
        model: on any device, also meta: only shapes are read.
        config: with ``backend="onnx"``.

    Returns:
        Weights exactly; the nodes between them as they were measured to be for a layer of the family, so that a model of
        realistic width is met within 1 % and a toy, which is mostly nodes, is not.
    """
    layers = projections(model)
    products = {f"{name}.weight": oriented(layers[name]).shape[0] for name in keep_plan(model, config).quantized}
    small = {*products, *tables_of(model)}
    floats = {name: parameter.numel() for name, parameter in model.named_parameters()}
    # One scale in float32 and one zero point in a byte for each output.
    weights = sum(count if name in small else 4 * count for name, count in floats.items()) + 5 * sum(products.values())
    depth = int(model.config.num_hidden_layers)
    graph = _FRAME + depth * (_LAYERS[model.config.model_type] + (_STATIC if config.mode == "static" else 0))
    return weights + graph + (4 * sum(floats.values()) + graph if config.float_graph else 0)
