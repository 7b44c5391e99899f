"""What a saved model holds, layer by layer, read from its files without building it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from hf_shrink.adapters import Adapter, read_adapter
from hf_shrink.anatomy import Family, Stack
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.families import FAMILIES
from hf_shrink.graph_folders import refuse_graphs
from hf_shrink.headers import as_words, check_storage
from hf_shrink.inside import Inspection, Part
from hf_shrink.lines import first_line
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig
from hf_shrink.models.reference import local_folder
from hf_shrink.quantization.embeddings import SCALE
from hf_shrink.quantization.plan import KEPT

_SCALES = (".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_NO_WEIGHTS = {torch.int64, torch.bool}
"""Positions and masks."""
_INSIDE = re.compile(r"\.\d+\.")
"""In the name of what lies in a layer."""


@dataclass(frozen=True)
class _Stored:
    """One tensor of a file; only what is said about it is kept in memory."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    numel: int
    zeros: int
    bytes: int


@dataclass(frozen=True)
class _Model:
    """What the config says, as far as widths go.

    Attributes:
        config: with every default filled in.
        record: ``quantization_config``, empty where there is none.
    """

    family: Family
    config: PreTrainedConfig
    record: Mapping[str, Any]

    @property
    def head_dim(self) -> int:
        said = self.record.get("head_dim") or getattr(self.config, self.family.head_dim or "", None)
        return int(said or self.config.hidden_size // getattr(self.config, self.family.num_heads))


def inspect_model(reference: str) -> Inspection:
    """Look into a folder, a ``package:NAME/PATH`` or a Hub id, whose config and safetensors are fetched unless the Hub is off.

    Raises:
        ResourceError: it is not to be had. MismatchError: no config or no safetensors. IntegrityError: a damaged file.
    """
    folder = local_folder(reference, download=True)
    refuse_graphs(folder)
    data = _config(folder)
    quantized = as_words(folder.name, data.get("quantization_config"))
    check_storage(folder.name, quantized, folder)
    ours = _ours(folder, quantized)
    quantized = ours or quantized
    model = _model(folder, data, ours)
    renamings = [] if model is None else _renamings(model.config)
    adapter = read_adapter(folder)
    parts: dict[tuple[int, int, int], list[_Stored]] = {}
    for tensor in _tensors(folder, renamings, packed_tables=ours.get("embeddings") == "int8"):
        parts.setdefault(_place(tensor.name, model), []).append(tensor)
    tables = _tables(ours, [tensor for part in parts.values() for tensor in part])
    return Inspection(
        model_type=str(data.get("model_type", "unknown")),
        loads_with=_loads_with(quantized, adapter),
        quantization=_quantization(quantized, tables),
        parts=tuple(_part(place, parts[place], model) for place in sorted(parts)),
        kept=_kept(data, quantized),
        adapter=adapter,
    )


def _ours(folder: Path, quantized: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record where it is ours and this release reads it; empty where it is another's."""
    if quantized.get("quant_method") != METHOD:
        return {}
    try:
        record: Mapping[str, Any] = ShrinkConfig.from_dict(dict(quantized)).to_dict()
    except RecipeError as error:
        raise IntegrityError(f"{folder.name}/config.json: {error}") from None
    return record


def _tables(ours: Mapping[str, Any], tensors: Sequence[_Stored]) -> str | None:
    """How the embeddings lie in the file: what was trained since lies there in float, whatever the record says."""
    said = ours.get("embeddings")
    dtype = {"int8": torch.int8, "bfloat16": torch.bfloat16}.get(str(said))
    return said if any(tensor.dtype == dtype and not _INSIDE.search(tensor.name) for tensor in tensors) else None


def _loads_with(quantized: Mapping[str, Any], adapter: Adapter | None) -> str:
    ours = quantized.get("quant_method") == METHOD
    loads = "transformers after import hf_shrink" if ours else "plain transformers"
    return loads if adapter is None else f"{loads}, its adapter with peft"


def _kept(data: Mapping[str, Any], quantized: Mapping[str, Any]) -> dict[str, str]:
    """Layers of a quantised model that are not, with their reasons; those of other makers have none on record."""
    if not quantized:
        return {}
    said = data.get(KEPT)
    if isinstance(said, dict):
        return {str(name): str(reason) for name, reason in said.items()}
    named = _inner(quantized).get("llm_int8_skip_modules")
    return {str(name): "no reason is on record" for name in named} if isinstance(named, list) else {}


def _inner(quantized: Mapping[str, Any]) -> Mapping[str, Any]:
    """What bitsandbytes is told, alone or inside ours."""
    options = quantized.get("bitsandbytes")
    return options if isinstance(options, Mapping) else quantized


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise MismatchError(f"{folder.name}: no config.json; name the folder that save_pretrained wrote.") from None
    except (ValueError, TypeError):
        raise IntegrityError(f"{folder.name}/config.json: not valid JSON, or no JSON object.") from None


def _model(folder: Path, data: Mapping[str, Any], record: Mapping[str, Any]) -> _Model | None:
    """None where the family is not known."""
    name = data.get("model_type", "")
    if not isinstance(name, str) or name not in FAMILIES:
        return None
    plain = {key: value for key, value in data.items() if key != "quantization_config"}
    try:
        config = CONFIG_MAPPING[name].from_dict(plain)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise IntegrityError(f"{folder.name}/config.json: {first_line(error)}") from None
    return _Model(FAMILIES[name], config, record)


def _renamings(config: PreTrainedConfig) -> list[WeightRenaming]:
    """How transformers turns the names in a file into those of modules, where they differ (ViT)."""
    base: Any = MODEL_MAPPING[type(config)]
    known = [get_checkpoint_conversion_mapping(key) for key in (config.model_type, base.__name__)]  # type: ignore[no-untyped-call]
    return [step for steps in known for step in steps or [] if isinstance(step, WeightRenaming)]


def _tensors(folder: Path, renamings: Sequence[WeightRenaming], *, packed_tables: bool = False) -> Iterator[_Stored]:
    """``packed_tables``: whether embeddings hold codes of int8 with a scale behind each row."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MismatchError(f"{folder.name}: no *.safetensors; other formats can run code and are not read.")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    tensor, name = file.get_tensor(key), key
                    size = tensor.numel() * tensor.element_size()
                    if packed_tables and tensor.dtype == torch.int8 and not _INSIDE.search(key):
                        tensor = tensor[:, :-SCALE]
                    for step in renamings:
                        name, _ = step.rename_source_key(name)
                    yield _stored(name, tensor, size)
        except SafetensorError as error:
            raise IntegrityError(f"{folder.name}/{path.name}: damaged: {error}.") from None


def _stored(name: str, tensor: Tensor, size: int) -> _Stored:
    counted = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor  # torch counts no float8
    return _Stored(name, tensor.dtype, tuple(tensor.shape), tensor.numel(), tensor.numel() - int(counted.count_nonzero()), size)


_EMBEDDINGS, _LAYER, _OTHER = range(3)


def _place(name: str, model: _Model | None) -> tuple[int, int, int]:
    """The part that a tensor belongs to: its kind, and of a layer the stack and the number, in the order they are shown in."""
    if model is not None:
        for index, stack in enumerate(model.family.stacks):
            if found := _inside(stack, name):
                return _LAYER, index, int(found[1])
        if any(re.search(rf"(?:^|\.){re.escape(owner)}\.", name) for owner in model.family.embeddings):
            return _EMBEDDINGS, 0, 0
    return _OTHER, 0, 0


def _inside(stack: Stack, name: str) -> re.Match[str] | None:
    """Groups: the number of the layer, and the name inside it."""
    return re.search(rf"(?:^|\.){re.escape(stack.layers)}\.(\d+)\.(.+)$", name)


def _part(place: tuple[int, int, int], tensors: Sequence[_Stored], model: _Model | None) -> Part:
    kind, index, number = place
    packed = {tensor.name for tensor in tensors if any(other.name == f"{tensor.name}.absmax" for other in tensors)}
    numbers = [tensor for tensor in tensors if _is_weight(tensor, kind, packed)]
    count = sum(tensor.numel * (2 if tensor.name in packed else 1) for tensor in numbers)
    name, layer = "embeddings" if kind == _EMBEDDINGS else "other", None
    if kind == _LAYER:
        assert model is not None, "only a known family has layers"
        stack = model.family.stacks[index]
        side = f"{stack.layers.partition('.')[0]} " if len(model.family.stacks) > 1 else ""
        name, layer = f"{side}layer {number}", _Layer(model, stack, number, tensors)
    return Part(
        name=name,
        heads=() if layer is None else layer.heads(),
        kv_heads=() if layer is None else layer.kv_heads(),
        ffn_width=None if layer is None else layer.ffn_width(),
        parameters=count,
        zeros=None if packed or not count else sum(tensor.zeros for tensor in numbers) / count,
        bytes=sum(tensor.bytes for tensor in tensors),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in numbers})),
    )


def _is_weight(tensor: _Stored, kind: int, packed: set[str]) -> bool:
    """Not a scale, nor what older releases stored beside weights: positions, and causal masks of four dimensions."""
    if tensor.name.endswith(_SCALES) or ".quant_state." in tensor.name or tensor.dtype in _NO_WEIGHTS:
        return False
    return tensor.name in packed or (tensor.dtype != torch.uint8 and not (kind == _LAYER and len(tensor.shape) > 2))


class _Layer:
    """Widths of one layer: from the shapes of its weights, of quantised ones from the record, and last from the config."""

    def __init__(self, model: _Model, stack: Stack, number: int, tensors: Sequence[_Stored]) -> None:
        self._model, self._stack, self._number = model, stack, number
        named = ((_inside(stack, tensor.name), tensor) for tensor in tensors)
        self._tensors = {found[2]: tensor for found, tensor in named if found is not None}

    def heads(self) -> tuple[int, ...]:
        return tuple(self._heads(each.output, 0, self._model.family.num_heads) for each in self._stack.attentions)

    def kv_heads(self) -> tuple[int, ...]:
        key = self._model.family.num_kv_heads
        if key is None:
            return self.heads()
        return tuple(self._heads(each.inputs[1], 1, key) for each in self._stack.attentions)

    def ffn_width(self) -> int:
        width = self._features(self._stack.ffn_out, 0)
        if width is None:
            width = getattr(self._model.config, self._model.family.ffn_width)
        return 4 * int(self._model.config.hidden_size) if width is None else int(width)  # GPT-2's n_inner: None

    def _heads(self, path: str, side: int, key: str) -> int:
        features = self._features(path, side)
        return int(getattr(self._model.config, key)) if features is None else features // self._model.head_dim

    def _features(self, path: str, side: int) -> int | None:
        """Inputs (``side`` 0) or outputs (1) of a projection; None where only the config knows."""
        tensor = self._tensors.get(f"{path}.weight")
        if tensor is not None and tensor.dtype.is_floating_point and len(tensor.shape) == 2:
            transposed = self._model.config.model_type == "gpt2"
            return tensor.shape[side if transposed else 1 - side]
        sizes = (self._model.record.get("shapes") or {}).get(f"{self._stack.layers}.{self._number}.{path}")
        return None if sizes is None else int(sizes[side])


def _quantization(quantized: Mapping[str, Any], tables: str | None) -> str | None:
    inner, found = _inner(quantized), []
    if (method := str(quantized.get("quant_method", METHOD))) not in (METHOD, "bitsandbytes"):
        found.append(f"{method} {quantized['bits']}-bit" if "bits" in quantized else method)
    if inner.get("load_in_4bit"):
        four = f"bitsandbytes 4-bit {inner.get('bnb_4bit_quant_type', '')}".strip()
        found.append(f"{four} and 8-bit" if quantized.get("eight_bits") else four)
    if inner.get("load_in_8bit"):
        found.append("bitsandbytes 8-bit")
    if tables is not None:
        found.append(f"embeddings {tables}")
    return ", ".join(found) or None
