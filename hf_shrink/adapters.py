"""LoRA adapters in a folder of their own beside the model that they belong to, in the layout of peft."""

from pathlib import Path
from typing import Any

from hf_shrink.errors import IntegrityError
from hf_shrink.lines import few

FOLDER = "adapter"
"""Below the model's folder: beside ``config.json`` an adapter's config would hide the model from ``from_pretrained``."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
