"""What is wrong with a folder before any of it is sent: a card that the Hub cannot read, and texts that give something away."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_shrink.errors import IntegrityError, QualityError, SecurityError
from hf_shrink.lines import first_line
from hf_shrink.publishing.identity import VOCABULARIES, trace_in
from hf_shrink.publishing.selection import CARD, REPORT, Selection, Upload

_BLOCK = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_LONGEST_HEADER = 100_000_000  # what the library itself reads at most
_TEXTS = ("license", "library_name", "pipeline_tag", "license_name", "license_link")
_LISTS = ("tags", "datasets", "metrics", "language", "base_model")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_texts(selection: Selection, token: str) -> None:
    """Refuse a card that is not valid, and any text, or header of weights, that holds a token or names this machine.

    Raises:
        IntegrityError: the card. SecurityError: a secret or a private path, which a commit would publish for good.
    """
    for each in selection.uploads:
        raw = _header(each) if each.is_weights else each.read()
        check_secrets(each.name, raw, token)
        if each.name not in VOCABULARIES and (trace := trace_in(raw)) is not None:
            raise SecurityError(f"{each.name}: holds {trace}; nothing was sent. Remove it.")
        if each.name == CARD:
            check_card(raw.decode("utf-8", errors="replace"))


def check_gate(selection: Selection) -> None:
    """Raises: QualityError: the report says that the model is worse than its recipe's gate allows."""
    report = next((each for each in selection.uploads if each.name == REPORT), None)
    gate = json.loads(report.read()).get("gate") if report is not None else None
    if isinstance(gate, Mapping) and not gate.get("held", True):
        raise QualityError(
            f"gate missed ({gate.get('rule')}); nothing was sent.\n"
            "Change `gate` in the recipe and run it again: that takes seconds."
        )


def check_secrets(what: str, raw: bytes, token: str) -> None:
    """Raises: SecurityError: ``raw`` holds ``token``, anything that looks like one, or the home folder."""
    if (token and token.encode() in raw) or _TOKEN.search(raw):
        raise SecurityError(f"{what}: holds an access token; nothing was sent. Remove it, and revoke the token.")
    if (home := _home()) is not None and home.search(raw):
        raise SecurityError(f"{what}: holds the path of your home folder; nothing was sent. Remove it.")


def _header(upload: Upload) -> bytes:
    """The text before the numbers, where the format has one; its length stands in the first eight bytes."""
    if not upload.name.endswith(".safetensors") or isinstance(upload.source, bytes):
        return b""
    with upload.source.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER))


def check_card(text: str) -> None:
    """Read a card's metadata as the Hub does, without asking it.

    Raises:
        IntegrityError: the first thing that the Hub would refuse or nobody could load again.
    """
    data = metadata_of(text)
    if problem := next(_problems(data), None):
        raise IntegrityError(f"{CARD}: {problem}")
    from huggingface_hub import ModelCard

    try:
        ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{CARD}: its metadata is not valid: {first_line(error)}") from None


def metadata_of(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where there is none.

    Raises:
        IntegrityError: it is no YAML mapping.
    """
    try:
        data = yaml.safe_load(front_matter(text)[0])
    except (yaml.YAMLError, ValueError) as error:
        raise IntegrityError(f"{CARD}: its metadata cannot be read: {first_line(error)}") from None
    if not isinstance(data or {}, dict):
        raise IntegrityError(f"{CARD}: its metadata is no mapping of keys to values.")
    return dict(data or {})


def front_matter(text: str) -> tuple[str, str]:
    """The YAML at the top of a card, and the page below it; both as they are."""
    block = _BLOCK.search(text)
    return (block[1], text[block.end() :]) if block else ("", text)


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    for key in _TEXTS:
        if not isinstance(data.get(key, ""), str):
            yield f"{key} must be text, not {data[key]!r}."
    for key in _LISTS:
        value = data.get(key, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in items):
            yield f"{key} must be a list of texts, not {value!r}."
        elif key in ("datasets", "base_model") and (bad := next((i for i in items if not _HUB_ID.fullmatch(i)), None)):
            yield f"{key}: {bad!r} is no name on the Hub; a path on this machine says nothing to others."
    if data.get("base_model_relation", "finetune") not in _RELATIONS:
        yield f"base_model_relation must be one of {', '.join(_RELATIONS)}."
    if not all(map(math.isfinite, _numbers(data))):
        yield "a number is not finite."


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner)
    elif isinstance(value, float):
        yield value


def _home() -> re.Pattern[bytes] | None:
    """Finds the home folder as a whole name, behind a link too, as it is or as JSON writes it; None where it says nothing."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    names = {str(home).rstrip("/"), os.path.realpath(home)} - {"", "/"}
    written = {name.encode() for name in names} | {json.dumps(name)[1:-1].encode() for name in names}
    return re.compile(rb"(?:" + b"|".join(map(re.escape, sorted(written))) + rb")(?![\w.-])") if written else None
