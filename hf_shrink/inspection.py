"""What a saved model holds, layer by layer, read from its files without building it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.families import FAMILIES, Family
from hf_shrink.models.reference import local_folder

_SCALES = (".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True)
class Part:
    """One transformer layer, the embeddings, or the rest.

    Attributes:
        ffn_width: neurons of the feed-forward block; None where there is none or the family is not known.
        parameters: stored numbers of weights and biases; a packed byte holds two 4-bit ones.
        zeros: fraction of those numbers that are zero; None where they are packed.
        bytes: with everything that belongs to them, scales too.
        dtypes: how weights are stored.
    """

    name: str
    ffn_width: int | None
    parameters: int
    zeros: float | None
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A folder's weights, part by part, and what it takes to load them."""

    model_type: str
    loads_with: str
    quantization: str | None
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Table:
        """A table for the terminal."""
        stored = f", {self.quantization}" if self.quantization else ""
        table = Table("part", "FFN width", "parameters", "zeros", "bytes", "dtypes")
        table.title = f"{self.model_type}{stored}, loads with {self.loads_with}"
        for part in self.parts:
            zeros = "" if part.zeros is None else f"{100 * part.zeros:.1f}%"
            width = "" if part.ffn_width is None else str(part.ffn_width)
            table.add_row(part.name, width, f"{part.parameters:,}", zeros, f"{part.bytes:,}", ", ".join(part.dtypes))
        return table


def inspect_model(reference: str) -> Inspection:
    """Look into a folder, a ``package:NAME/PATH`` or a Hub id that is in the cache.

    Raises:
        ResourceError: it is not on this machine. MismatchError: no config or no safetensors. IntegrityError: a damaged file.
    """
    folder = local_folder(reference)
    config = _config(folder)
    family = FAMILIES.get(config.get("model_type", ""))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(folder):
        part, inside = _place(name, family)
        parts.setdefault(part, {})[inside] = tensor
    order = sorted(parts, key=lambda part: [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", part)])
    quantized = config.get("quantization_config") or {}
    return Inspection(
        model_type=str(config.get("model_type", "unknown")),
        loads_with="transformers after import hf_shrink"
        if quantized.get("quant_method") == "hf_shrink"
        else "plain transformers",
        quantization=_quantization(quantized),
        parts=tuple(_part(name, parts[name], family, config) for name in order),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise MismatchError(f"{folder.name}: no config.json; name the folder that save_pretrained wrote.") from None
    except (ValueError, TypeError):
        raise IntegrityError(f"{folder.name}/config.json: not valid JSON, or no JSON object.") from None


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MismatchError(f"{folder.name}: no *.safetensors; other formats can run code and are not read.")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise IntegrityError(f"{folder.name}/{path.name}: damaged: {error}.") from None


def _place(name: str, family: Family | None) -> tuple[str, str]:
    """The part a tensor belongs to, and its name inside a layer or in full."""
    if family is not None:
        if found := re.search(rf"(?:^|\.){re.escape(family.layers)}\.(\d+)\.(.+)$", name):
            return f"layer {found[1]}", found[2]
        if any(re.search(rf"(?:^|\.){re.escape(owner)}\.", name) for owner in family.embeddings):
            return "embeddings", name
    return "other", name


def _part(name: str, tensors: Mapping[str, Tensor], family: Family | None, config: Mapping[str, Any]) -> Part:
    numbers = [tensor for key, tensor in tensors.items() if not _is_scale(key) and tensor.dtype != torch.int64]  # positions
    packed = any(tensor.dtype == torch.uint8 for tensor in numbers)
    count = sum(tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1) for tensor in numbers)
    zeros = None if packed or not count else sum(int((tensor == 0).sum()) for tensor in numbers) / count
    return Part(
        name=name,
        ffn_width=_ffn_width(tensors, family, config) if name.startswith("layer ") else None,
        parameters=count,
        zeros=zeros,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in numbers})),
    )


def _is_scale(key: str) -> bool:
    return key.endswith(_SCALES) or ".quant_state." in key


def _ffn_width(tensors: Mapping[str, Tensor], family: Family | None, config: Mapping[str, Any]) -> int | None:
    """From the reader's weight; a packed one does not show its shape, so the config speaks for it."""
    assert family is not None
    weight = tensors.get(f"{family.ffn_out}.weight")
    if weight is None or weight.dtype == torch.uint8:
        width = config.get(family.ffn_width)
        return width if isinstance(width, int) else None
    return int(weight.shape[0 if config.get("model_type") == "gpt2" else 1])  # GPT-2 stores its projections transposed


def _quantization(quantized: Mapping[str, Any]) -> str | None:
    inner = quantized.get("bitsandbytes") or quantized
    if inner.get("load_in_4bit"):
        return f"bitsandbytes 4-bit {inner.get('bnb_4bit_quant_type', '')}".strip()
    return "bitsandbytes 8-bit" if inner.get("load_in_8bit") else None
