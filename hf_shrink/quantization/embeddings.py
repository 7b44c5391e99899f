"""Embeddings in fewer bits: in the file alone. In memory they are floats, rounded to what the file can hold.

So a lookup is as fast as before, and an output layer that is tied to a table computes with the very numbers that are stored.
Rows of int8 are symmetrical: code times scale, where the scale is the row's largest magnitude, in bfloat16, by 127. From such
numbers the same codes and scales are found again, in any precision, so that saving a loaded model gives the same bytes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig

RECORD = "embeddings_dtype"
"""Key of ``config.json``: how the tables lie in the file."""
SCALE = 2
"""Bytes behind the codes of a row."""
_LEVELS = 127
_ROWS = 8192
"""Converted at a time, so that a large table does not need room for several of its size."""


def tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Word, position and type embeddings by name, each shared one once; not what lies inside a layer."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    inside = {id(m) for stack in model.modules() if isinstance(stack, nn.ModuleList) for m in stack.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and id(module) not in inside:
            weight = module.get_parameter("weight")
            found.setdefault(id(weight), (f"{name}.weight", weight))
    return dict(found.values())


def round_embeddings(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Round the tables of ``model`` as ``config.embeddings`` says, in place, and note it in the model's config.

    Args:
        model: with float tables, in the precision that it computes in.
        config: ``keep`` changes nothing.

    Raises:
        RecipeError: no tables, or such that are as small already and would lose digits.
    """
    check_tables(model, config)
    if not _changes(model, config):
        return
    for parameter in tables(model).values():
        for rows in _pieces(parameter.data):
            rows.copy_(_rounded(rows, config.embeddings))
    setattr(model.config, RECORD, config.embeddings)
    take_packed(model)


def take_packed(model: nn.Module) -> None:
    """Let ``load_state_dict`` of ``model`` take tables as they lie in a file in int8: a Trainer goes on, or back, that way."""
    model.register_load_state_dict_pre_hook(_unpack_in_place)  # type: ignore[no-untyped-call]


def _unpack_in_place(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, packed in [*state.items()]:
        table = own.get(name.removeprefix(prefix))
        if table is not None and table.is_floating_point() and packed.dtype == torch.int8:
            check_packed(packed, name)
            state[name] = unpack(packed, table.dtype)


@torch.no_grad()
def rounded_table(table: Tensor, kind: str) -> Tensor:
    """What ``round_embeddings`` makes of ``table`` ``[rows, features]``; ``kind``: bfloat16 or int8."""
    return torch.cat([_rounded(rows, kind) for rows in _pieces(table.detach())])


def check_tables(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Refuse an ``embeddings`` that does nothing for ``model`` (on any device, also meta), or rounds twice; a RecipeError."""
    if config.embeddings == "keep":
        return
    if (before := recorded_dtype(model)) not in (None, config.embeddings):
        raise RecipeError(
            f"quantization.embeddings: tables are rounded to {before} already; {config.embeddings} would round them twice.\n"
            "Remove the key, or start from the model's float weights."
        )
    if not tables(model):
        raise RecipeError(f"quantization.embeddings: {type(model).__name__} looks nothing up in tables; remove the key.")
    if config.embeddings == "bfloat16" and torch.float16 in _dtypes(model, config):
        raise RecipeError(
            "quantization.embeddings: bfloat16 takes as many bytes as float16 and loses digits; use int8 or keep."
        )


def recorded_dtype(model: PreTrainedModel) -> str | None:
    """``bfloat16`` or ``int8`` where the tables of ``model`` are to lie so in a file and still hold such numbers.

    Tables that were trained since are stored as the floats they are: nothing is rounded behind anybody's back. Without
    weights, on meta, the record is all there is.
    """
    kind = getattr(model.config, RECORD, None)
    if kind not in ("bfloat16", "int8"):
        return None
    found = tables(model).values()
    if any(parameter.is_meta for parameter in found):
        return str(kind)
    same = all(torch.equal(rows, _rounded(rows, kind)) for parameter in found for rows in _pieces(parameter.data))
    return kind if same and found else None


def as_stored(model: PreTrainedModel) -> dict[str, Any] | None:
    """The state dict that is written to the file; None where that is the model's own."""
    kind = recorded_dtype(model)
    if kind is None:
        return None
    state: dict[str, Any] = model.state_dict()
    packed: dict[int, Tensor] = {}
    places = {parameter.data_ptr() for parameter in tables(model).values()}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.data_ptr() in places and tensor.numel():
            if tensor.data_ptr() not in packed:
                value = pack(tensor) if kind == "int8" else tensor.to(torch.bfloat16)
                packed[tensor.data_ptr()] = value.reshape(file_shape(tuple(tensor.shape), kind, bool(stored_bits(model))))
            state[name] = packed[tensor.data_ptr()]
    return state


def file_shape(shape: tuple[int, ...], kind: str, quantized: bool) -> tuple[int, ...]:
    """Shape in the file of a table ``[rows, features]``; ``quantized``: whether other layers are.

    Beside quantised layers plain transformers would take over the file's precision, and the codes of 8-bit layers as weights:
    a shape that it does not expect makes it stop.
    """
    rows, features = shape
    if kind == "int8":
        return rows, features + SCALE
    return (1, rows, features) if quantized else shape


def pack(table: Tensor) -> Tensor:
    """``[rows, features]`` floats as ``[rows, features + 2]`` int8: codes, and the row's largest magnitude as a bfloat16."""
    return torch.cat([_packed(rows) for rows in _pieces(table.detach())])


def unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats that ``pack`` stored."""
    return torch.cat([_unpacked(rows, dtype) for rows in _pieces(packed)])


def kind_in_file(model: PreTrainedModel, config: QuantizationConfig | None) -> str | None:
    """``bfloat16`` or ``int8`` where the tables of ``quantize(model, config)`` lie so in the file.

    Args:
        model: on any device, also meta. ``keep`` leaves tables that are rounded already as they are: rounded.
        config: None for the model as it is.

    Raises:
        RecipeError: as ``check_tables``.
    """
    if config is not None:
        check_tables(model, config)
        if _changes(model, config):
            return config.embeddings
    return recorded_dtype(model)


def check_packed(packed: Tensor, name: str) -> None:
    """An IntegrityError where the tensor ``name`` of a file cannot be what ``pack`` stored."""
    if packed.dtype != torch.int8 or packed.ndim != 2 or packed.shape[1] <= SCALE:
        shape = list(packed.shape)
        raise IntegrityError(f"{name}: codes and scales must be int8, [rows, features]; got {packed.dtype}, {shape}.")
    if (bad := int((~(_scales(packed) >= 0) | _scales(packed).isinf()).sum())) > 0:
        raise IntegrityError(f"{name}: {bad} scales are negative, NaN or infinite; copy the file again.")


def embedding_tensors(
    model: PreTrainedModel, config: QuantizationConfig | None, quantized: bool
) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtypes and shapes of the tables in the file; empty where they stay as the rest is. Arguments as for ``kind_in_file``."""
    if (kind := kind_in_file(model, config)) is None:
        return {}
    dtype = torch.int8 if kind == "int8" else torch.bfloat16
    return {name: (dtype, file_shape(tuple(table.shape), kind, quantized)) for name, table in tables(model).items()}


def expect_training(model: PreTrainedModel) -> None:
    """Take the record of rounded tables off ``model``, on meta, where a training will change one of them."""
    if hasattr(model.config, RECORD) and any(table.requires_grad for table in tables(model).values()):
        delattr(model.config, RECORD)


def _changes(model: PreTrainedModel, config: QuantizationConfig) -> bool:
    """Whether the tables are to lie otherwise in the file than the model's own precision does."""
    if config.embeddings == "bfloat16":
        return _dtypes(model, config) != {torch.bfloat16}
    return config.embeddings == "int8"


def _dtypes(model: PreTrainedModel, config: QuantizationConfig) -> set[torch.dtype]:
    """What the tables will have in memory."""
    found = {parameter.dtype for parameter in tables(model).values()}
    return found if config.dtype is None else {getattr(torch, config.dtype)}


def _pieces(table: Tensor) -> Iterator[Tensor]:
    """Views of some rows at a time."""
    return (table[start : start + _ROWS] for start in range(0, len(table), _ROWS))


def _rounded(rows: Tensor, kind: str) -> Tensor:
    return _unpacked(_packed(rows), rows.dtype) if kind == "int8" else rows.to(torch.bfloat16).to(rows.dtype)


def _packed(rows: Tensor) -> Tensor:
    most = rows.abs().amax(dim=1, keepdim=True).to(torch.bfloat16)
    scale = most.float() / _LEVELS
    codes = (rows.float() / torch.where(scale > 0, scale, torch.ones_like(scale))).round().clamp(-_LEVELS, _LEVELS)
    return torch.cat([codes.to(torch.int8), most.contiguous().view(torch.int8)], dim=1)


def _unpacked(packed: Tensor, dtype: torch.dtype) -> Tensor:
    return (packed[:, :-SCALE].float() * (_scales(packed).float() / _LEVELS)).to(dtype)


def _scales(packed: Tensor) -> Tensor:
    """The largest magnitude of each row, ``[rows, 1]``."""
    return packed[:, -SCALE:].contiguous().view(torch.bfloat16)
