"""Reports read back from a finished run."""

import json
from collections.abc import Sequence
from pathlib import Path

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.lines import first_line
from hf_shrink.measurement.values import Report
from hf_shrink.onnx_model import FOLDER

NAME = "hf_shrink_report.json"


def artefact(stages: Sequence[Report]) -> int:
    """Index of the model that ``from_pretrained`` loads: the last of the stages but for graphs."""
    return max((i for i, stage in enumerate(stages) if stage.name != FOLDER), default=len(stages) - 1)


def read_report(folder: str | Path) -> tuple[list[Report], str | None]:
    """The stages in a folder's ``hf_shrink_report.json``, first to last, and the name of its baseline.

    Raises:
        RecipeError: the folder has no such file.
        IntegrityError: the file is no report.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise RecipeError(f"{path.parent.name}: no {NAME}. Give the folder of a finished run, or measure the folder first.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stages = [Report.from_stage(stage) for stage in data["stages"]]
        baseline = data.get("baseline")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path.parent.name}/{NAME}: not a report of hf_shrink: {first_line(error)}") from error
    if not stages or not (baseline is None or isinstance(baseline, str)):
        raise IntegrityError(f"{path.parent.name}/{NAME}: not a report of hf_shrink: no stages, or a baseline that is no name.")
    return stages, baseline
