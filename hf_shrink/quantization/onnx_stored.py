"""What the weights of an int8 graph are worth, read from the file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_shrink.quantization.onnx_graph import module_of, onnx_library

_READS = {"MatMulInteger": 1, "MatMul": 1, "Gather": 0}
"""Nodes that compute with a weight, and which of their inputs it is."""
_SUFFIX = "_quantized"


def stored_weights(path: Path) -> dict[str, Tensor]:
    """(Code - zero point) times scale of every weight that ``int8_graph`` stored in 8 bits.

    Args:
        path: of the graph.

    Returns:
        By module: float32, ``[out_features, in_features]`` of a product, ``[rows, features]`` of an embedding.

    Raises:
        ResourceError: onnx is missing.
    """
    onnx = onnx_library()
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def array(name: str) -> Any:
        return onnx.numpy_helper.to_array(tensors[name]).astype(np.float32)

    found = {}
    for node in graph.node:
        if node.op_type not in _READS:
            continue
        name = node.input[_READS[node.op_type]]
        if (maker := makers.get(name)) is not None and maker.op_type == "DequantizeLinear":  # mode: static
            name = maker.input[0]
        if name not in tensors or not name.endswith(_SUFFIX):
            continue
        base = name.removesuffix(_SUFFIX)
        weight = torch.from_numpy((array(name) - array(f"{base}_zero_point")) * array(f"{base}_scale"))
        found[module_of(node)] = weight if node.op_type == "Gather" else weight.T
    return found
