"""Whether the weights in a folder are quantised as its config says, from the headers of its files."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_shrink.errors import MismatchError

_SCALES = {8: re.compile(r"\.SCB$"), 4: re.compile(r"\.quant_state\.bitsandbytes__\w+$")}
"""Tensors that bitsandbytes stores beside each weight of so many bits."""


def check_storage(where: str, record: Any, folder: Path) -> None:
    """Refuse weights in float under a config that says they are quantised, and the other way round.

    transformers loads the first as if nothing were wrong and fails at the first forward pass; of the second it calls the scales
    unexpected, or the shapes.

    Args:
        where: what to call the folder.
        record: ``quantization_config`` of its config, a dict or an object, or None; of methods, only bitsandbytes, alone or
            inside ours, is looked at.
        folder: with safetensors; a damaged one is left to whoever reads it.

    Raises:
        MismatchError: the two contradict each other.
    """
    record = record if isinstance(record, Mapping) else {} if record is None else record.to_dict()
    said, found, dtype = _said(record), *_found(sorted(folder.glob("*.safetensors")))
    if said is None or dtype is None or said == found:
        return
    if not found:
        raise MismatchError(
            f"{where}: config.json says {_words(said)}, the weights are {dtype} without scales.\n"
            "Remove quantization_config from config.json to load them in float; then quantise them: hf-shrink quantize."
        )
    says = f"says {_words(said)}" if said else "has no quantization_config"
    raise MismatchError(
        f"{where}: the weights are {_words(found)}, config.json {says}.\nPut back the config.json that was saved with them."
    )


def _said(record: Mapping[str, Any]) -> set[int] | None:
    """Bits that layers have; None where another library is to say."""
    method = str(getattr(record.get("quant_method"), "value", record.get("quant_method", "bitsandbytes")))
    if method not in ("hf_shrink", "bitsandbytes"):
        return None
    options = (record.get("bitsandbytes") or {}) if method == "hf_shrink" else record
    bits = {bits for bits, key in ((8, "load_in_8bit"), (4, "load_in_4bit")) if options.get(key)}
    return bits | ({8} if record.get("eight_bits") else set())


def _found(files: Iterable[Path]) -> tuple[set[int], str | None]:
    """Bits that layers have, and how the largest tensor lies there; None where nothing can be read."""
    bits: set[int] = set()
    largest, dtype = -1, None
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    bits |= {width for width, scales in _SCALES.items() if scales.search(key)}
                    part = file.get_slice(key)
                    if (size := math.prod(part.get_shape())) > largest:
                        largest, dtype = size, str(part.get_dtype())
        except (OSError, SafetensorError):
            return set(), None
    return bits, dtype


def _words(bits: set[int]) -> str:
    return f"bitsandbytes {' and '.join(f'{width}-bit' for width in sorted(bits))}"
