"""The front matter of a card: what the Hub reads."""

import re
from collections.abc import Mapping
from typing import Any

from hf_shrink.markdown import clean
from hf_shrink.measurement.energy import footprint
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.values import Report
from hf_shrink.publishing.private import last_name
from hf_shrink.tasks import TASKS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def metadata(report: Mapping[str, Any], final: Report | None) -> dict[str, Any]:
    """Plain data for YAML; a key without a value is left out. ``final`` is the stage that is published."""
    recipe = _made(report)
    publishing = recipe.get("publishing") or {}
    dataset = str((recipe.get("data") or {}).get("dataset") or "")
    from_files = any(str(key).startswith("sha256") for key in report.get("data") or {})  # a folder may be called owner/name
    base = base_model(report)
    found = {
        "library_name": "transformers",
        "pipeline_tag": _pipeline(recipe),
        "license": publishing.get("license"),
        "language": publishing.get("language"),
        "base_model": base,
        "base_model_relation": relation(recipe) if base else None,
        "datasets": [dataset] if hub_id(dataset) and not from_files else None,
        "tags": tags(recipe),
        "metrics": list(dict.fromkeys(metric["type"] for metric in _metrics(final))),
        "co2_eq_emissions": _emissions(report),
        "model-index": _index(report, final),
        "hf_shrink": {"version": report.get("hf_shrink"), "recipe_sha256": report.get("recipe_sha256")},
    }
    return dict(_kept(found))


def _made(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe without the ways to store the model that a gate has rolled back."""
    recipe, dropped = report.get("recipe") or {}, (report.get("gate") or {}).get("dropped") or {}
    stages = {"onnx": "onnx", "bitsandbytes": "quantized"}
    left = [entry for entry in _entries(recipe) if stages.get(entry.get("backend", "bitsandbytes")) not in dropped]
    kept = {key: value for key, value in recipe.items() if key != "recovery" or "recovered" not in dropped}
    return {**kept, "quantization": left} if dropped else recipe


def _entries(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = recipe.get("quantization") or []
    return list(given) if isinstance(given, list | tuple) else [given]


def base_model(report: Mapping[str, Any]) -> str:
    """The name that was given; else that of the model which the run began with, where it is known to be of the Hub."""
    recipe = report.get("recipe") or {}
    given, began = (recipe.get("publishing") or {}).get("base_model"), str(recipe.get("model") or "")
    is_of_hub = _COMMIT.fullmatch(str((report.get("weights") or {}).get("model"))) is not None
    return clean(given or "") or (clean(began) if is_of_hub and not began.startswith("local:") else "")


def relation(recipe: Mapping[str, Any]) -> str:
    """What the model is to its base: ``quantized`` where its weights are stored in fewer bits, whatever was done before that.

    Of the Hub's four words ``finetune`` is all that is left for what is pruned, distilled or trained alone.
    """
    return "quantized" if _quantization(recipe) else "finetune"


def title(report: Mapping[str, Any]) -> str:
    """The name that was given, else that of the output folder."""
    recipe = report.get("recipe") or {}
    given = (recipe.get("publishing") or {}).get("model_name")
    folder = last_name(str(recipe.get("output_dir") or "")).removeprefix("local: ") if recipe.get("output_dir") else ""
    return clean(given or "") or clean(folder) or "model"


def hub_id(reference: str) -> bool:
    """True for ``owner/name``; a bare name may as well be a local folder, so it does not count."""
    return bool(_HUB_ID.fullmatch(reference)) and not reference.endswith(_FILES)


def tags(recipe: Mapping[str, Any]) -> list[str]:
    """``hf-shrink``, what was done, and the tags that were given; each once."""
    done = ["hf-shrink"]
    done += ["distilled"] if recipe.get("distillation") else []
    done += ["pruned"] if recipe.get("pruning") else []
    done += _quantization(recipe)
    if (recovery := recipe.get("recovery")) is not None:  # an empty one is all defaults
        adapter = ["lora"] if recovery.get("keep", "adapter") == "adapter" else []
        done += ["qat"] if recovery.get("method") == "qat" else adapter
    given = (recipe.get("publishing") or {}).get("tags") or []
    return list(dict.fromkeys([*done, *filter(None, map(clean, given))]))


def _quantization(recipe: Mapping[str, Any]) -> list[str]:
    found = []
    for section in _entries(recipe):
        names = {8: "int8", 4: section.get("quant_type", "nf4"), 16: section.get("dtype")}
        found += ["quantized", *([str(name)] if (name := names.get(section.get("bits", 8))) else [])]
        found += ["onnx"] if section.get("backend") == "onnx" else []
    return found


def _pipeline(recipe: Mapping[str, Any]) -> str | None:
    """What the Hub calls the task."""
    task: str | None = recipe.get("task")
    return TASKS[task].pipeline if task is not None and task in TASKS else task


def _metrics(final: Report | None) -> list[dict[str, Any]]:
    known = rows()
    return [
        {"type": known[m.name].hub, "value": m.value, "name": f"{known[m.name].label} ({m.unit})"}
        for m in (final.measurements if final else ())
        if m.name in known and known[m.name].hub
    ]


def _emissions(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of all that the run trained, in grams, as the Hub shows it."""
    stages = [Report.from_stage(stage) for stage in [*(report.get("stages") or []), *(report.get("dropped") or [])]]
    found = footprint(measurement for stage in stages for measurement in stage.measurements)
    if found is None:
        return None
    grams, country = found
    said = {"emissions": float(f"{grams:.6g}"), "source": "codecarbon", "training_type": "fine-tuning"}
    return {**said, "geographical_location": country}


def _index(report: Mapping[str, Any], final: Report | None) -> list[dict[str, Any]]:
    recipe = report.get("recipe") or {}
    data = recipe.get("data") or {}
    if not (metrics := _metrics(final)) or not recipe.get("task") or not data.get("dataset"):
        return []
    if not (name := clean(data["dataset"]).removeprefix("local: ").removeprefix("package:")):
        return []
    dataset = {
        "name": name,
        "type": name,
        "config": data.get("subset"),
        "split": data.get("test_split") or data.get("validation_split"),
        "revision": (report.get("data") or {}).get("revision") or data.get("revision"),  # the commit that was read
    }
    result = {"task": {"type": _pipeline(recipe)}, "dataset": dict(_kept(dataset)), "metrics": metrics}
    return [{"name": title(report), "results": [result]}]


def _kept(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Without what is empty; text as one clean line, in lists and mappings as well."""
    pairs = [(key, _plain(value)) for key, value in found.items()]
    return [(key, value) for key, value in pairs if not _empty(value)]


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(_kept(value))
    if isinstance(value, list | tuple):
        return [plain for item in value if not _empty(plain := _plain(item))]
    return clean(value) if isinstance(value, str) else value
