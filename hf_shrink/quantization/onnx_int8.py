"""ONNX Runtime's own quantiser on a float graph: projections and embeddings in 8 bits, the rest as it is.

Weights of projections are signed, with one scale an output, and use 7 of their 8 bits: processors without VNNI add products of
unsigned and signed bytes in 16 bits and saturate without a word where both use all 8, so that this is the fast form that is
right on every CPU, and on SST-2 none lost less (tests/benchmarks/README.md). Embeddings are looked up and use all 8.
"""

import copy
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hf_shrink.errors import MismatchError, RecipeError, ResourceError, ShrinkError
from hf_shrink.lines import first_line
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.onnx_graph import module_of

Feed = Mapping[str, npt.NDArray[Any]]
"""One run of a graph: input name -> array."""


def int8_graph(
    graph: Any,
    quantized: Sequence[str],
    embeddings: Sequence[str],
    config: QuantizationConfig,
    calibration: Iterable[Feed] = (),
) -> Any:
    """A copy of ``graph`` (an ``onnx.ModelProto``) with int8 weights; ``graph`` stays as it is.

    Args:
        graph: what ``float_graph`` made.
        quantized: modules whose products become int8; those that the graph does not have are passed over.
        embeddings: names of tables that become int8.
        config: ``dynamic`` finds the range of each product's input while it runs, ``static`` from ``calibration``.
        calibration: inputs for ``static``; read once.

    Raises:
        ResourceError: onnxruntime is missing, or its quantiser fails.
        RecipeError, MismatchError: calibration that is empty, or that the graph does not take.
    """
    model = _products_only(graph)
    names = [node.name for node in model.graph.node if node.op_type == "MatMul" and _multiplies(node, model, set(quantized))]
    with tempfile.TemporaryDirectory(prefix="hf_shrink-onnx-") as folder, _explained(), _quiet():
        path = Path(folder) / "model.onnx"
        if names:
            model = _quantize_products(model, names, config, calibration, path)
        if embeddings:
            model = _quantize_tables(model, set(embeddings), path)
    return model


def _products_only(graph: Any) -> Any:
    """A copy in which every ``Gemm`` is a product and a sum, as the quantiser would make it, under names that we know."""
    with _explained():
        from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(copy.deepcopy(graph))
    model.replace_gemm_with_matmul()
    del model.model.graph.value_info[:]
    return model.model


def _multiplies(node: Any, model: Any, modules: set[str]) -> bool:
    """Whether a node is the product of one of ``modules`` by its own weight."""
    return module_of(node) in modules and any(tensor.name == node.input[1] for tensor in model.graph.initializer)


def _quantize_products(
    model: Any, names: list[str], config: QuantizationConfig, calibration: Iterable[Feed], path: Path
) -> Any:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    options: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "nodes_to_quantize": names,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": True,
    }
    if config.mode == "dynamic":
        quantize_dynamic(model, path, **options)
    else:
        quantize_static(
            model, path, _reader(calibration), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, **options
        )
    return onnx.load(path)


def _quantize_tables(model: Any, tables: set[str], path: Path) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = [node.name for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["Gather"],
        nodes_to_quantize=names,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what the first pass made, whose types it cannot tell
    )
    return onnx.load(path)


def _reader(calibration: Iterable[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(calibration)
            self._any = False

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self._feeds, None)
            if feed is None and not self._any:
                raise RecipeError("onnx: calibration has no batch; give batches of real inputs.")
            self._any = True
            return None if feed is None else dict(feed)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to prepare the graph first, which would only undo what the exporter named."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ShrinkError:
        raise
    except ImportError as error:
        raise ResourceError(f"onnx: {first_line(error)}. Try: pip install 'hf-shrink[onnx]'") from error
    except Exception as error:  # onnxruntime's own kinds share no base but this one
        if type(error).__module__.startswith("onnxruntime"):  # a graph runs here for calibration alone
            raise MismatchError(f"onnx: calibration does not fit the model: {first_line(error)}") from error
        if not isinstance(error, RuntimeError | ValueError | AssertionError):
            raise
        raise ResourceError(f"onnx: ONNX Runtime's quantiser failed: {first_line(error)}") from error
