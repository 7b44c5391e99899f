"""A model of transformers as an ONNX graph in float32, with the inputs and outputs that ONNX Runtime's users expect."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.finite import check_finite
from hf_shrink.lines import first_line
from hf_shrink.onnx_model import FLOAT, runtime
from hf_shrink.own_forward import is_wrapped, unwrap_forward

OPSET = 17
"""The first with LayerNormalization; later ones say nothing that these graphs need."""

_MOST_BYTES = 2**31 - 2**24
"""A protobuf message holds 2 GiB."""
_ENCODERS = ("bert", "roberta", "distilbert", "electra")
_DECODERS = ("gpt2", "llama", "gpt_neox", "qwen2", "qwen3")
_WITH_TYPES = ("bert", "electra")
"""Families whose tokenizers say which of two texts a token belongs to."""
_BATCH, _TOKENS, _PAST, _ALL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


@dataclass(frozen=True)
class Signature:
    """What goes into a graph and what comes out.

    Attributes:
        inputs: names in order, without the cache.
        outputs: names in order, without the cache.
        per_token: whether the outputs have a place for each token.
        layers: of a cache that goes in and comes out; 0 where there is none.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_token: bool
    layers: int = 0

    @property
    def cache(self) -> tuple[str, ...]:
        """``0.key``, ``0.value``, ``1.key``, ...; behind ``past_key_values.`` they go in, behind ``present.`` they come out."""
        return tuple(f"{i}.{part}" for i in range(self.layers) for part in ("key", "value"))


_OUTPUTS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "ForSequenceClassification": (("logits",), False),
    "ForTokenClassification": (("logits",), True),
    "ForQuestionAnswering": (("start_logits", "end_logits"), True),
    "ForMaskedLM": (("logits",), True),
    "ForCausalLM": (("logits",), True),
    "LMHeadModel": (("logits",), True),
    "Model": (("last_hidden_state",), True),
}
"""How a class name ends -> its outputs, and whether they are one a token."""


def signature_of(model: PreTrainedModel) -> Signature:
    """The inputs and outputs of the graph of ``model``, from its class and config alone.

    Raises:
        RecipeError: a family or a head that is not exported, or that computes longer texts in another way.
    """
    family, name = model.config.model_type, type(model).__name__
    if family not in _ENCODERS + _DECODERS:
        raise RecipeError(f"onnx: models of type {family!r} are not exported. Known: {', '.join(_ENCODERS + _DECODERS)}.")
    end = next((end for end in _OUTPUTS if name.endswith(end)), None)
    causal = end in ("ForCausalLM", "LMHeadModel")
    if end is None:
        raise RecipeError(f"onnx: {name} is not exported. Heads that are: {', '.join(_OUTPUTS)}.")
    if causal and family in _ENCODERS:
        raise RecipeError(f"onnx: {name} is not exported: as language models only {', '.join(_DECODERS)} are.")
    _check_length(model.config, causal=causal)
    outputs, per_token = _OUTPUTS[end]
    more = ("position_ids",) if causal else ("token_type_ids",) if family in _WITH_TYPES else ()
    layers = int(model.config.num_hidden_layers) if causal else 0
    return Signature(("input_ids", "attention_mask", *more), outputs, per_token, layers)


def _check_length(config: Any, *, causal: bool) -> None:
    """A graph is the trace of a short text: what a longer one would be given instead is not in it."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in ("dynamic", "longrope"):
        raise RecipeError(f"onnx: rope_type {rope!r} depends on the length of the text, which a graph cannot say.")
    if causal and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise RecipeError("onnx: language models with a sliding window are not exported; their cache has another form.")


def float_graph(model: PreTrainedModel) -> Any:
    """The graph (an ``onnx.ModelProto``) of a copy of ``model`` in float32; ``model`` stays as it is.

    Batch, length and cache may have any size. Weights are called as in the model's ``state_dict``, nodes after their module.
    Attention is the plain formula: the fused one guards every softmax against rows without any word, which costs time and
    which masks of large negative numbers do not need.

    Raises:
        RecipeError: see ``signature_of``, or a model that is quantised.
        NonFiniteError: a weight is NaN or infinite.
        ResourceError: onnx is missing, or the weights are too large for one file.
    """
    signature = signature_of(model)
    check_finite(model, "onnx")
    check_room(model)
    onnx = onnx_library()
    wrapped = _Graph(_plain_copy(model), signature)
    try:
        with tempfile.TemporaryDirectory(prefix="hf_shrink-onnx-") as folder, _quiet(), torch.no_grad():
            path = Path(folder) / FLOAT
            torch.onnx.export(
                wrapped,
                wrapped.example(),
                path,
                dynamo=False,
                input_names=[*signature.inputs, *(f"past_key_values.{name}" for name in signature.cache)],
                output_names=[*signature.outputs, *(f"present.{name}" for name in signature.cache)],
                dynamic_axes=_axes(signature),
                opset_version=OPSET,
            )
            graph = onnx.load(path)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise RecipeError(f"onnx: {type(model).__name__} cannot be exported: {first_line(error)}") from error
    _name_after_modules(graph)
    if is_tied(model):
        _share_table(onnx, graph, model)
    return graph


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` itself where it is in float32 on the CPU and computes so, else such a copy."""
    fits = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    if fits and not is_wrapped(model):
        return model
    result: Any = copy.deepcopy(model, {id(p): p for p in model.parameters()} if fits else {})
    unwrap_forward(result)
    return result if fits else result.to("cpu").float()  # type: ignore[no-any-return]


def check_room(model: PreTrainedModel) -> None:
    """Refuse, with a ``ResourceError``, what does not fit into one file; ``model`` may be on the meta device."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > _MOST_BYTES:
        raise ResourceError(f"onnx: {size / 1e9:.1f} GB of weights in float32; one file holds 2 GB. Export a smaller model.")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer is the table of word embeddings."""
    head, words = _head(model), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(words, "weight", ...)


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def module_of(node: Any) -> str:
    """The module that a node came from: ``/bert/pooler/dense/Gemm`` is of ``bert.pooler.dense``."""
    return str(node.name).strip("/").rpartition("/")[0].replace("/", ".")


class _Graph(nn.Module):
    """Tensors in and tensors out, in the order of the signature; the model is called ``m`` within."""

    def __init__(self, model: PreTrainedModel, signature: Signature) -> None:
        super().__init__()
        self.m = model
        self._signature = signature

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        signature = self._signature
        given: dict[str, Any] = dict(zip(signature.inputs, tensors, strict=False))
        if not signature.layers:
            found = self.m(**given, **({"use_cache": False} if self.m.config.model_type in _DECODERS else {}))
            return tuple(found[name] for name in signature.outputs)
        past, flat = DynamicCache(), tensors[len(signature.inputs) :]
        for i in range(signature.layers):
            past.update(flat[2 * i], flat[2 * i + 1], i)
        found = self.m(**given, past_key_values=past, use_cache=True)
        cached = [part for layer in found.past_key_values.layers for part in (layer.keys, layer.values)]
        return (*(found[name] for name in signature.outputs), *cached)

    def example(self) -> tuple[Tensor, ...]:
        """Two rows of three tokens, behind a past of four where there is a cache."""
        signature = self._signature
        ids, before = torch.ones(2, 3, dtype=torch.int64), 4 if signature.layers else 0
        made = {
            "input_ids": ids,
            "attention_mask": torch.ones(2, before + 3, dtype=torch.int64),
            "token_type_ids": torch.zeros_like(ids),
            "position_ids": torch.arange(before, before + 3).expand(2, 3),
        }
        past: list[Tensor] = []
        if signature.layers:
            seen = self.m(input_ids=torch.ones(2, before, dtype=torch.int64), use_cache=True).past_key_values
            past = [part for layer in seen.layers for part in (layer.keys, layer.values)]
        return (*(made[name] for name in signature.inputs), *past)


def _plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """In float32 on the CPU, in eval mode, with plain attention; weights are shared where they are so already."""
    model = in_float32(model)
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    result: Any = copy.deepcopy(model, memo)
    result.set_attn_implementation("eager")
    result.eval()
    return result  # type: ignore[no-any-return]


def _axes(signature: Signature) -> dict[str, dict[int, str]]:
    axes = {name: {0: _BATCH, 1: _TOKENS} for name in signature.inputs}
    if signature.layers:
        axes["attention_mask"] = {0: _BATCH, 1: _ALL}
    axes |= {name: {0: _BATCH, 1: _TOKENS} if signature.per_token else {0: _BATCH} for name in signature.outputs}
    axes |= {f"past_key_values.{name}": {0: _BATCH, 2: _PAST} for name in signature.cache}
    return axes | {f"present.{name}": {0: _BATCH, 2: _ALL} for name in signature.cache}


def _name_after_modules(graph: Any) -> None:
    """Take our wrapper out of all names, and call a weight that the exporter transposed after the module that reads it."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    names = {name: name.removeprefix("m.") for name in weights if name.startswith("m.")}
    for node in graph.graph.node:
        node.name = node.name.replace("/m/", "/", 1) if node.name.startswith("/m/") else node.name
        for name in node.input:
            if name in weights and name not in names and name.startswith("onnx::") and (module := module_of(node)):
                names[name] = _free(f"{module}.weight", names)
    for tensor in graph.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def _free(name: str, taken: Mapping[str, str]) -> str:
    used = set(taken.values())
    return name if name not in used else next(n for i in range(1, len(used) + 2) if (n := f"{name}_{i}") not in used)


def _share_table(onnx: Any, graph: Any, model: PreTrainedModel) -> None:
    """Let the output layer read the table of word embeddings, which the exporter stored a second time, transposed."""
    names = {id(module): name for name, module in model.named_modules()}
    words, head = model.get_input_embeddings(), _head(model)
    table = f"{names[id(words)]}.weight"
    product = next((node for node in graph.graph.node if module_of(node) == names[id(head)] and node.op_type == "MatMul"), None)
    second = next((t for t in graph.graph.initializer if product is not None and t.name == product.input[1]), None)
    if product is None or second is None or second.name == table:
        return
    graph.graph.initializer.remove(second)
    turned = onnx.helper.make_node("Transpose", [table], [second.name], name=f"{table}/Transpose", perm=[1, 0])
    graph.graph.node.insert(list(graph.graph.node).index(product), turned)


def check_installed() -> None:
    """A ``ResourceError`` where a library that makes or runs graphs is missing."""
    onnx_library()
    runtime()


def onnx_library() -> Any:
    """onnx itself; a ``ResourceError`` where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise ResourceError(f"onnx: {first_line(error)}. Try: pip install 'hf-shrink[onnx]'") from error
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice on other exporters and on shapes that it takes for constants: the result is compared."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
