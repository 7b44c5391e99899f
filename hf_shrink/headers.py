"""Whether the weights in a folder are quantised as its config says, from the headers of its files."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.stock_options import as_stored

_SCALES = {8: re.compile(r"\.SCB$"), 4: re.compile(r"\.quant_state\.bitsandbytes__\w+$")}
"""Tensors that bitsandbytes stores beside each weight of so many bits."""


def check_storage(where: str, record: Any, folder: Path, files: Sequence[Path] | None = None) -> None:
    """Refuse weights in float under a config that says they are quantised, and the other way round.

    transformers loads the first as if nothing were wrong and fails at the first forward pass; of the second it calls the scales
    unexpected, or the shapes.

    Args:
        where: what to call the folder.
        record: ``quantization_config`` of its config, a dict or an object, or None; of methods, only bitsandbytes, alone or
            inside ours, is looked at.
        folder: with safetensors; a damaged one is left to whoever reads it.
        files: that are read; None for those that ``from_pretrained`` takes from ``folder``.

    Raises:
        MismatchError: the two contradict each other.
        IntegrityError: the record is not what any release writes.
    """
    record = as_words(where, record)
    said = _said(where, record)
    found, dtype, weights = _found(_files(folder) if files is None else files)
    if said is None or dtype is None or said == found:
        return
    if not found and not _quantizable(where, record, weights):
        return  # every layer is one that stays in float
    if not found:
        raise MismatchError(
            f"{where}: config.json says {_words(said)}, the weights are {dtype} without scales.\n"
            "Remove quantization_config from config.json to load them in float; then quantise them: hf-shrink quantize."
        )
    says = f"says {_words(said)}" if said else "has no quantization_config"
    raise MismatchError(
        f"{where}: the weights are {_words(found)}, config.json {says}.\nPut back the config.json that was saved with them."
    )


def check_record(where: str, folder: Path) -> None:
    """Refuse a record that transformers fails on in words of its own, or believes: thresholds below 0, typos in options.

    Raises:
        IntegrityError: the record, where it is one of bitsandbytes, is not what any release writes.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # whoever loads it says so
    record = as_words(where, config.get("quantization_config")) if isinstance(config, dict) else {}
    if record and _method(record) == "bitsandbytes":
        try:
            as_stored(record, "config.json: quantization_config")
        except RecipeError as error:
            raise IntegrityError(f"{where}: {error}\nPut back the config.json that was saved with the weights.") from None


def as_words(where: str, record: Any) -> Mapping[str, Any]:
    """``quantization_config`` as a mapping, empty for None; an IntegrityError where it is something else."""
    if record is None:
        return {}
    if isinstance(record, Mapping):
        return record
    if not callable(getattr(record, "to_dict", None)):
        raise IntegrityError(
            f"{where}/config.json: quantization_config must be an object with keys; got {record!r:.60}.\n"
            "Put back the config.json that was saved with the weights."
        )
    words: Mapping[str, Any] = record.to_dict()
    return words


def _options(record: Mapping[str, Any]) -> Any:
    """What bitsandbytes is told, alone or inside ours."""
    return (record.get("bitsandbytes") or {}) if _method(record) == "hf_shrink" else record


def _method(record: Mapping[str, Any]) -> str:
    return str(getattr(record.get("quant_method"), "value", record.get("quant_method", "bitsandbytes")))


def _said(where: str, record: Mapping[str, Any]) -> set[int] | None:
    """Bits that layers have; None where another library is to say."""
    if _method(record) not in ("hf_shrink", "bitsandbytes"):
        return None
    options = _options(record)
    if not isinstance(options, Mapping):
        raise IntegrityError(f"{where}/config.json: bitsandbytes must be an object with keys; got {options!r:.60}.")
    skipped = options.get("llm_int8_skip_modules")
    if skipped is not None and not (isinstance(skipped, Sequence) and {*map(type, skipped)} <= {str}):
        raise IntegrityError(f"{where}/config.json: llm_int8_skip_modules must be a list of names; got {skipped!r:.60}.")
    bits = {bits for bits, key in ((8, "load_in_8bit"), (4, "load_in_4bit")) if options.get(key)}
    return bits | ({8} if record.get("eight_bits") else set())


def _quantizable(where: str, record: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Those of ``modules`` that the skip list does not keep in float."""
    skipped = list(_options(record).get("llm_int8_skip_modules") or ())
    try:
        return [name for name in modules if should_convert_module(name, skipped)]
    except re.error:
        raise IntegrityError(f"{where}/config.json: llm_int8_skip_modules holds a pattern that is none.") from None


def _files(folder: Path) -> list[Path]:
    """Those that ``from_pretrained`` reads: the one, else what the index names; a variant beside them is another model."""
    if (one := folder / "model.safetensors").is_file():
        return [one]
    try:
        names = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted({*names}) if name == Path(name).name]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _found(files: Iterable[Path]) -> tuple[set[int], str | None, set[str]]:
    """Bits that layers have, how the largest tensor lies there, None where nothing can be read, and who has a matrix."""
    bits, modules = set[int](), set[str]()
    largest, dtype = -1, None
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    bits |= {width for width, scales in _SCALES.items() if scales.search(key)}
                    part = file.get_slice(key)
                    if len(part.get_shape()) > 1:
                        modules.add(key.rpartition(".")[0])
                    if (size := math.prod(part.get_shape())) > largest:
                        largest, dtype = size, str(part.get_dtype())
        except (OSError, SafetensorError):
            return set(), None, set()
    return bits, dtype, modules


def _words(bits: set[int]) -> str:
    return f"bitsandbytes {' and '.join(f'{width}-bit' for width in sorted(bits))}"
