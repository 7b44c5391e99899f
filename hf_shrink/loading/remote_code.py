"""Opt-in: let users who trust a repository's code load a pruned model without installing hf_shrink."""

import json
import pprint
from pathlib import Path
from string import Template
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.families import FAMILIES
from hf_shrink.files import write_text
from hf_shrink.lines import first_line
from hf_shrink.loading.modeling_template import CLASS, TEMPLATE
from hf_shrink.loading.shrink_config import FORMAT, METHOD, ShrinkConfig

MODULE = "modeling_hf_shrink"


def add_remote_code(folder: Path) -> Path:
    """Write ``modeling_hf_shrink.py`` into ``folder`` and name its classes in the ``auto_map`` of its config.

    Without hf_shrink, ``from_pretrained`` then builds the model when it is allowed to run the repository's code, and fails
    over sizes when it is not. After ``import hf_shrink`` it needs no such permission.

    Args:
        folder: of a model in float that hf_shrink saved because its shapes are not stock. A second call changes nothing.

    Returns:
        The file that was written.

    Raises:
        MismatchError: nothing in the folder that this would help: no model, a stock one, a quantised one, or code of its own.
        IntegrityError: the config is damaged. RecipeError: its record is from a newer hf_shrink.
    """
    data = _config(folder)
    record = data.get("quantization_config")
    if not isinstance(record, dict) or record.get("quant_method") != METHOD:
        raise MismatchError(
            f"{folder.name}: plain transformers loads it, or another library saved it; it needs no code of ours."
        )
    known = ShrinkConfig(**record)
    if known.bitsandbytes is not None or known.embeddings is not None:
        raise MismatchError(
            f"{folder.name}: it is quantised, which a short file cannot rebuild; add the code to a float model."
        )
    theirs = {name: value for name, value in data.get("auto_map", {}).items() if not _is_ours(value)}
    if theirs:
        raise MismatchError(f"{folder.name}: its config names code of its own already ({min(theirs)}); remove auto_map first.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{folder.name}/config.json: {first_line(error)}") from error
    classes = auto_classes(config, data.get("architectures") or [])
    path = folder / f"{MODULE}.py"
    write_text(path, _code(config, sorted(set(classes.values()))))
    data["auto_map"] = {auto: f"{MODULE}.{name}" for auto, name in classes.items()}
    write_text(folder / "config.json", json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def auto_classes(config: PreTrainedConfig, architectures: list[str]) -> dict[str, str]:
    """``AutoModel…`` -> the class that it opens the model as: those in ``architectures``, and the base model.

    Raises:
        MismatchError: no Auto class opens such a model.
    """
    found: dict[str, str] = {}
    for auto in sorted(name for name in dir(transformers) if name.startswith("AutoModel")):
        mapping = getattr(getattr(transformers, auto), "_model_mapping", None)
        if mapping is None or type(config) not in mapping:
            continue
        kinds = mapping[type(config)]
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple | list) else [kinds])]
        if chosen := [name for name in names if name in architectures or auto == "AutoModel"]:
            found[auto] = chosen[0]
    missing = sorted(set(architectures) - set(found.values()))
    if missing or not architectures:
        raise MismatchError(f"architectures {missing or architectures}: no AutoModel class opens such a model.")
    return found


def _code(config: PreTrainedConfig, names: list[str]) -> str:
    family = FAMILIES.get(config.model_type)
    attentions = [
        (stack.layers, each.module, each.output, each.head_dim, each.counts, each.widths)
        for stack in (family.stacks if family is not None else ())
        for each in stack.attentions
    ]
    classes = "\n".join(CLASS.format(name=name) for name in names)
    return Template(TEMPLATE).substitute(attentions=pprint.pformat(attentions, width=120), format=FORMAT, classes=classes)


def forget(config: Any) -> None:
    """Take our classes out of the ``auto_map`` of a model that was built without them: saving it does not copy their file."""
    kept = {name: value for name, value in (getattr(config, "auto_map", None) or {}).items() if not _is_ours(value)}
    if kept:
        config.auto_map = kept
    elif hasattr(config, "auto_map"):
        del config.auto_map


def _is_ours(value: Any) -> bool:
    """``value`` is ``module.Class``, with ``repository--`` before it where the model came from the Hub."""
    return isinstance(value, str) and value.rpartition("--")[2].startswith(f"{MODULE}.")


def _config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MismatchError(f"{folder.name}: no config.json; name the folder that save_pretrained wrote.") from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise IntegrityError(f"{folder.name}/config.json: not valid JSON, or no JSON object.")
    return data
