"""``verify``: whether a folder or a published model is what its report says."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from rich.text import Text
from transformers import PreTrainedModel

from hf_shrink.errors import IntegrityError, MismatchError, ResourceError
from hf_shrink.files import sha256
from hf_shrink.finite import check_finite
from hf_shrink.graph_folders import refuse_graphs
from hf_shrink.lines import few, first_line, without_home
from hf_shrink.loading.verify import load_strictly
from hf_shrink.measurement.reports import artefact
from hf_shrink.measurement.size import non_zero
from hf_shrink.measurement.values import Report
from hf_shrink.onnx_model import FOLDER
from hf_shrink.publishing.checks import check_card
from hf_shrink.stored import REPORT
from hf_shrink.workspace import MANIFEST

_PARTS = ["*.json", "*.safetensors", "*.md", "*.txt", "*.model", "*.jinja", "*.yaml", "onnx/*"]
"""What is fetched of a published model: nothing that could run."""


@dataclass(frozen=True)
class Verification:
    """A model that passed.

    Attributes:
        passed: one line a check.
        unknown: what could not be checked, and why.
    """

    reference: str
    passed: tuple[str, ...]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Text:
        """Lines for the terminal."""
        return Text("\n".join([*(f"ok: {line}" for line in self.passed), *(f"not checked: {line}" for line in self.unknown)]))


def verify_model(reference: str, *, revision: str | None = None) -> Verification:
    """Check files, weights, zeros, card and loading of a folder or a model on the Hub.

    Args:
        reference: a folder, or ``owner/name``.
        revision: commit, tag or branch on the Hub.

    Raises:
        IntegrityError: the first check that fails. NonFiniteError: a weight is NaN or infinite.
        MismatchError: no model there. ResourceError: not to be had.
    """
    folder, name = _folder(reference, revision), without_home(reference)
    refuse_graphs(folder)
    passed: list[str] = []
    unknown: list[str] = []
    report = _json(folder / REPORT)
    recorded = _recorded(folder, report)
    if recorded:
        _check_files(folder, name, recorded)
        passed.append(f"{len(recorded)} files are as recorded, by sha256")
    else:
        unknown.append("files: no sha256 is recorded")
    model = load_strictly(folder, _kind(folder), torch.device("cpu"))
    check_finite(model, name)
    passed.append(f"loads with every one of its {len(model.state_dict())} tensors from the files, all finite")
    stages = [Report.from_stage(stage) for stage in report.get("stages") or []]
    said, found = stages[artefact(stages)].value("parameters_non_zero") if stages else None, non_zero(model)
    if said is None or found is None:
        unknown.append("zeros: no count is recorded" if said is None else "zeros: not to be counted in this format")
    elif int(said) != found:
        raise IntegrityError(f"{name}: {found:,} weights are other than zero, {int(said):,} by its report.")
    else:
        passed.append(f"{found:,} weights are other than zero, as reported")
    if (folder / "README.md").is_file():
        check_card((folder / "README.md").read_text(encoding="utf-8", errors="replace"))
        passed.append("the card's metadata is valid")
    else:
        unknown.append("card: there is none")
    return Verification(name, tuple(passed), tuple(unknown))


def _folder(reference: str, revision: str | None) -> Path:
    if Path(reference).is_dir():
        return Path(reference)
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=_PARTS))
    except HFValidationError:
        raise ResourceError(f"{without_home(reference)}: no such folder, and no name on the Hub (owner/name).") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(f"{without_home(reference)}: cannot be had from the Hub: {first_line(error)}") from None


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise IntegrityError(f"{path.parent.name}/{path.name}: not valid JSON, or no JSON object.") from None


def _recorded(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by path: as published, or as the run noted for the finished model; not of a card, which people may edit."""
    files = dict(report.get("files") or {})
    if not files:
        stages = _json(folder / MANIFEST).get("stages") or {}
        for stage in ("final", FOLDER, "report"):
            files |= (stages.get(stage) or {}).get("files") or {}
    return {name: digest for name, digest in files.items() if name != "README.md"}


def _check_files(folder: Path, name: str, recorded: Mapping[str, str]) -> None:
    for path in recorded:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise IntegrityError(f"{name}: its report names {path[:80]!r}, which is outside the folder.")
    if missing := [path for path in recorded if not (folder / path).is_file()]:
        raise IntegrityError(f"{name}: {len(missing)} recorded files are not there: {few(missing, 3)}.")
    if changed := [path for path, digest in recorded.items() if sha256(folder / path) != digest]:
        raise IntegrityError(f"{name}: {len(changed)} files are not what was recorded: {few(changed, 3)}.")


def _kind(folder: Path) -> type[PreTrainedModel]:
    """The class that the model was saved from."""
    names = _json(folder / "config.json").get("architectures")
    kind = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise MismatchError(f"{folder.name}/config.json: architectures {names!r} name no model of transformers.")
    return kind
