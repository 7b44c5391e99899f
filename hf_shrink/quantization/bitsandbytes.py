"""bitsandbytes through transformers' own quantizer: int8 (arXiv:2208.07339, by rows), nf4 and fp4 (arXiv:2305.14314).

The only file that imports bitsandbytes, and only when it is used.
"""

import copy
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_shrink.errors import IntegrityError, NonFiniteError, ResourceError
from hf_shrink.lines import first_line
from hf_shrink.quantization.cast import cast_in_place
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.repacking import disable_cpu_repacking, refuse_repacked
from hf_shrink.targets import Projection, oriented

_BLOCK = 64  # weights that share a scale in 4 bits
_NESTED_BLOCK = 256  # scales that share a scale under double quantisation
_HEADS = (
    *("classifier", "pre_classifier", "classification_head", "score", "qa_outputs", "lm_head", "cls", "pooler.dense"),
    *("vocab_transform", "vocab_projector", "generator_predictions", "generator_lm_head", "discriminator_predictions"),
    *("sequence_summary", "multiple_choice_head"),
)
"""What transformers calls the layers that a model for one task has and another has not."""
_CHATTY = "bitsandbytes.autograd._functions"


def unfit(layer: Projection, config: QuantizationConfig) -> str | None:
    """Why bitsandbytes should not have this layer."""
    in_features = oriented(layer).shape[1]
    if config.bits == 4 and in_features % _BLOCK:
        # With AVX512 the dequantising kernel is silently wrong for such widths, so no machine may quantise them.
        return f"in_features not a multiple of {_BLOCK}"
    return None


def to_hf_config(config: QuantizationConfig, skip: Sequence[str]) -> BitsAndBytesConfig:
    """The value for ``from_pretrained(quantization_config=...)``; ``skip`` replaces the defaults of transformers."""
    if config.bits == 8:
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_threshold=float(config.threshold), llm_int8_skip_modules=list(skip)
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant_type,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=config.compute_dtype,
        llm_int8_skip_modules=list(skip),
    )


def store(
    model: PreTrainedModel, config: QuantizationConfig, *, quantized: Sequence[str], kept: Sequence[str]
) -> PreTrainedModel:
    """A quantised copy of ``model``, in eval mode, on the same device; layers may have any widths.

    Args:
        model: stays as it is.
        config: 4 or 8 bits.
        quantized: the layers to store in fewer bits.
        kept: every other projection.

    Raises:
        ResourceError: bitsandbytes is missing or has no kernels for this machine.
        IntegrityError: other layers than ``quantized`` were converted.
        NonFiniteError: weights too large for 8 bits, which go through float16.
    """
    library()
    quantizer = AutoHfQuantizer.from_config(to_hf_config(config, skip_names(model, quantized, kept)), pre_quantized=False)
    _check_machine(quantizer)
    weights = {name: model.get_parameter(f"{name}.weight") for name in quantized}
    # deepcopy takes what stands in memo for already copied: the large weights are lent to the copy until they are replaced.
    result = copy.deepcopy(model, {id(weight): weight for weight in weights.values()})
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    if dtype is not None:
        cast_in_place(result, dtype, leave=list(weights.values()))
    before = stored_bits(result)
    biases: dict[str, Any] = {name: result.get_submodule(name).bias for name in quantized}
    quantizer.preprocess_model(result, device_map=None)
    _check_converted(stored_bits(result).keys() - before.keys(), quantized)
    for name, weight in weights.items():
        # 4 bits come back in the precision they were made from, so they are made from the one the model computes in.
        value = weight.detach() if config.bits == 8 or dtype is None else weight.detach().to(dtype)
        _fill(result, name, value, biases[name], quantizer)
    quantizer.postprocess_model(result)
    result.hf_quantizer = quantizer
    disable_cpu_repacking(result)
    result.eval()  # type: ignore[no-untyped-call]  # the new layers too: in training they multiply another way
    return result


def settle(model: nn.Module) -> None:
    """What ``store`` sees to, for a model whose quantised layers somebody else loaded: each warning once, no repacking."""
    if stored_bits(model):
        _warn_once(_CHATTY)
    disable_cpu_repacking(model)


def stored(name: str, layer: Projection, config: QuantizationConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes of the tensors that ``layer.weight`` becomes in the file."""
    out_features, in_features = oriented(layer).shape
    weight = f"{name}.weight"
    if config.bits == 8:
        return {
            weight: (torch.int8, (out_features, in_features)),
            f"{name}.SCB": (torch.float32, (out_features,)),
            f"{name}.weight_format": (torch.uint8, ()),
        }
    blocks = math.ceil(out_features * in_features / _BLOCK)
    state: dict[str, Any] = {
        "quant_type": config.quant_type,
        "blocksize": _BLOCK,
        "dtype": "float32",
        "shape": [out_features, in_features],
    }
    tensors = {
        weight: (torch.uint8, (math.ceil(out_features * in_features / 2), 1)),
        f"{weight}.absmax": (torch.uint8 if config.double_quant else torch.float32, (blocks,)),
        f"{weight}.quant_map": (torch.float32, (16,)),
    }
    if config.double_quant:
        state |= {"nested_blocksize": _NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.012345678901234567}
        tensors[f"{weight}.nested_absmax"] = (torch.float32, (math.ceil(blocks / _NESTED_BLOCK),))
        tensors[f"{weight}.nested_quant_map"] = (torch.float32, (256,))
    tensors[f"{weight}.quant_state.bitsandbytes__{config.quant_type}"] = (torch.uint8, (len(json.dumps(state)),))
    return tensors


def restored(layer: Any) -> torch.Tensor:
    """The weight that a quantised layer multiplies by, ``[out_features, in_features]``, as floats.

    Raises:
        IntegrityError: it has been repacked for the CPU.
    """
    bnb, weight = library(), layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        refuse_repacked(layer, f"4-bit weights of {layer.out_features} x {layer.in_features}")
        back: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return back
    scales = layer.state.SCB if weight.SCB is None else weight.SCB  # the first forward pass moves them
    return torch.as_tensor(bnb.functional.int8_vectorwise_dequant(weight.data, scales))


@torch.no_grad()
def rounded(weight: torch.Tensor, config: QuantizationConfig) -> torch.Tensor:
    """What ``restored`` gives of a layer that ``weight`` ``[out_features, in_features]`` was stored in."""
    bnb, weight = library(), weight.detach().contiguous()
    if config.bits == 8:
        numbers, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
        return torch.as_tensor(bnb.functional.int8_vectorwise_dequant(numbers, scales))
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=_BLOCK, compress_statistics=config.double_quant, quant_type=config.quant_type
    )
    back: torch.Tensor = bnb.functional.dequantize_4bit(packed, state)
    return back


def stored_bits(model: nn.Module) -> dict[str, Literal[4, 8]]:
    """Layers of ``model`` that hold numbers of 4 or 8 bits, by name; empty, without the library, where it has none."""
    found: dict[str, Literal[4, 8]] = {}
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if kind in ("Linear4bit", "Linear8bitLt") and not hasattr(layer, "base_layer"):  # adapters around one share its name
            found[name] = 4 if kind == "Linear4bit" else 8
    return found


@torch.no_grad()
def dequantize_in_place(model: Any, dtype: torch.dtype) -> None:
    """Plain layers of the kind that they were before: GPT-2's take the transposed weight. ``dtype``: of every weight."""
    bnb = library()
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, bnb.nn.Linear8bitLt | bnb.nn.Linear4bit):
            continue
        weight, kind = restored(layer).to(dtype), getattr(layer, "source_cls", nn.Linear)
        with torch.device("meta"):
            plain: Any = (
                Conv1D(layer.out_features, layer.in_features)  # type: ignore[no-untyped-call]
                if issubclass(kind, Conv1D)
                else nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            )
        plain.weight = nn.Parameter(weight.T.contiguous() if issubclass(kind, Conv1D) else weight)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().to(dtype))
        plain.train(model.training)
        model.set_submodule(name, plain)
    cast_in_place(model, dtype)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, flag):
            setattr(model, flag, False)


def _fill(model: PreTrainedModel, name: str, value: torch.Tensor, bias: nn.Parameter | None, quantizer: Any) -> None:
    layer: Any = model.get_submodule(name)
    made: Mapping[str, nn.Parameter] = quantizer.get_quantize_ops().convert({f"{name}.weight": value}, model=model)
    layer.weight = made[f"{name}.weight"]
    if bias is not None:
        layer.bias = bias.requires_grad_(False)
    scales = getattr(layer.weight, "SCB", None)
    if scales is not None and not torch.isfinite(scales).all():
        raise NonFiniteError(
            f"quantization: {name}.weight has values above 65504, too large for 8 bits. Put it in skip_modules."
        )


def skip_names(model: PreTrainedModel, quantized: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Names for ``llm_int8_skip_modules`` that cover every kept layer and no other, with and without a head on top.

    Heads that ``model`` has not are among them: the folder may be opened with one, which is new and has to be in float.

    transformers skips what starts or ends with such a name, so a path inside the base model serves both. Where a name would
    catch more than its own layer it is anchored: transformers reads it as a regular expression.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    names = []
    for name in kept:
        relative = name.removeprefix(prefix)
        alone = all(should_convert_module(other, [relative]) for other in quantized)
        names.append(relative if alone else f"{re.escape(name)}$")
    return [*names, *_other_heads(names, quantized, prefix)]


def _other_heads(names: Sequence[str], quantized: Sequence[str], prefix: str) -> list[str]:
    """Those of ``_HEADS`` that are not named yet and catch no layer that is stored in fewer bits, with and without a head."""
    layers = {*quantized, *(name.removeprefix(prefix) for name in quantized)}
    free = [head for head in _HEADS if should_convert_module(head, list(names))]
    return [head for head in free if all(should_convert_module(layer, [head]) for layer in layers)]


def _check_converted(converted: Set[str], quantized: Sequence[str]) -> None:
    if converted != set(quantized):
        wrong = sorted(converted ^ set(quantized))
        raise IntegrityError(
            f"quantization: transformers converted {len(converted)} layers, {len(quantized)} were planned; first: {wrong[0]}."
        )


def _check_machine(quantizer: Any) -> None:
    try:
        quantizer.validate_environment(device_map=None)
    except (ImportError, RuntimeError) as error:
        raise ResourceError(f"quantization: {first_line(error)}") from error


def library() -> Any:
    """bitsandbytes itself, which from now on says each of its warnings once; a ResourceError where it is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ResourceError("quantization: 4 and 8 bits need bitsandbytes. Try: pip install bitsandbytes") from error
    _warn_once(_CHATTY)
    return bitsandbytes


class _Once(logging.Filter):
    """Lets each message of a logger through the first time it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.msg not in self._said
        self._said.add(record.msg)
        return new


def _warn_once(name: str) -> None:
    """bitsandbytes says at every forward pass of every layer that float32 inputs are cast."""
    logger = logging.getLogger(name)
    if not any(isinstance(known, _Once) for known in logger.filters):
        logger.addFilter(_Once())
