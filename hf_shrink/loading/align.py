"""Lay out a safetensors file so that loaded weights start where freshly allocated ones do.

Loaders map the file into memory, and the CPU's matrix kernels add in another order when a matrix does not start at a multiple
of 64 bytes: the same weights then give logits that differ in the last bit. The format allows no gap between tensors, so those
whose size is a multiple of 64 come first, behind a header padded with spaces.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

ALIGNMENT = 64
"""Bytes; what torch's CPU allocator gives."""


def align(path: Path) -> None:
    """Rewrite ``path``, a whole safetensors file, in place: same tensors, same bytes, another order.

    The file is replaced in one step.
    """
    with path.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header: dict[str, Any] = json.loads(source.read(length))
        metadata = header.pop("__metadata__", None)
        names = sorted(header, key=lambda name: (_size(header[name]) % ALIGNMENT != 0, header[name]["data_offsets"]))
        text = _header(header, names, metadata)
        partial = path.with_name(f".{path.name}.aligned")
        with partial.open("wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                source.seek(8 + length + header[name]["data_offsets"][0])
                _copy(source, target, _size(header[name]))
    shutil.copymode(path, partial)
    partial.replace(path)


def _size(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)


def _header(header: dict[str, Any], names: list[str], metadata: dict[str, str] | None) -> bytes:
    moved: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name in names:
        size = _size(header[name])
        moved[name] = {**header[name], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(moved, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-(8 + len(text)) % ALIGNMENT)


def _copy(source: Any, target: Any, size: int) -> None:
    while size:
        piece = source.read(min(size, 1 << 22))
        assert piece, "the header has been read, so the data is there"
        target.write(piece)
        size -= len(piece)
