"""LoRA adapters in a folder of their own beside the model that they belong to, in the layout of peft."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_shrink.errors import IntegrityError
from hf_shrink.lines import few, first_line

FOLDER = "adapter"
"""Below the model's folder: beside ``config.json`` an adapter's config would hide the model from ``from_pretrained``."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def carries_adapter(model: Any) -> bool:
    """Whether layers of ``model`` have other names and parts than those of its kind: adapters, or what is left of them.

    ``delete_adapter`` of transformers takes the adapter's weights away and leaves its wrappers around the layers.
    """
    return bool(getattr(model, "peft_config", None)) or any(hasattr(layer, "base_layer") for layer in model.modules())


def holds_adapter(folder: Path) -> bool:
    """Whether the model in ``folder`` is meant with the adapter that lies there."""
    return (folder / FOLDER / CONFIG).is_file()


def attach(model: Any, folder: Path) -> None:
    """Put the adapter of ``folder`` into ``model``, which was loaded from there, as transformers itself does.

    Raises:
        IntegrityError: weights of the adapter are missing, or are of layers that the model has not.
    """
    found = model.load_adapter(str(folder), adapter_kwargs={"subfolder": FOLDER, "local_files_only": True})
    wrong = {*found.missing_keys, *found.unexpected_keys, *(key for key, *_ in found.mismatched_keys)}
    if wrong:
        raise IntegrityError(
            f"{folder.name}/{FOLDER}: {len(wrong)} weights do not fit {type(model).__name__}: {few(sorted(wrong), 3)}."
        )


@dataclass(frozen=True)
class Adapter:
    """What lies beside a model.

    Attributes:
        kind: as peft calls it.
        rank: of most of its layers.
        ranks: of those that have another.
        targets: names of the layers, or ends of them.
        parameters, bytes: numbers in it, and the size of its file.
    """

    kind: str
    rank: int | None
    ranks: dict[str, int]
    targets: tuple[str, ...]
    parameters: int
    bytes: int

    @property
    def words(self) -> str:
        """One sentence."""
        rank = "" if self.rank is None else f" of rank {self.rank}"
        less = f" ({len(self.ranks)} of them of rank {min(self.ranks.values())} and more)" if self.ranks else ""
        layers = f" on {len(self.targets)} layers{less}: {few(self.targets, 3)}" if self.targets else ""
        size = f"{self.parameters:,} parameters, {self.bytes:,} bytes, which are in no row"
        return f"{FOLDER}/ holds an adapter, {self.kind}{rank}{layers}; {size}"


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter beside the model in ``folder``, from its files alone; None where there is none.

    Raises:
        IntegrityError: a damaged file, or one that is missing.
    """
    if not holds_adapter(folder):
        return None
    where = folder / FOLDER
    try:
        said = dict(json.loads((where / CONFIG).read_text(encoding="utf-8")))
        with safe_open(where / WEIGHTS, framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a mapping
    except (ValueError, TypeError):
        raise IntegrityError(f"{folder.name}/{FOLDER}/{CONFIG}: not valid JSON, or no JSON object.") from None
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder.name}/{FOLDER}/{WEIGHTS}: not to be read: {first_line(error)}.") from None
    targets = said.get("target_modules") or ()
    return Adapter(
        kind=str(said.get("peft_type", "unknown")).replace("LORA", "LoRA"),
        rank=said.get("r"),
        ranks=dict(said.get("rank_pattern") or {}),
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        parameters=sum(math.prod(shape) for shape in shapes),
        bytes=(where / WEIGHTS).stat().st_size,
    )
