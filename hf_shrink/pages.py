"""What people look at: the page of a run, and of several models side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_shrink.errors import MismatchError, RecipeError, ResourceError
from hf_shrink.files import write_text
from hf_shrink.inspection import inspect_model
from hf_shrink.judging import compare_models
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.reports import NAME, artefact
from hf_shrink.measurement.values import Report
from hf_shrink.models.reference import local_folder, shown
from hf_shrink.onnx_model import FOLDER
from hf_shrink.publishing.charts import plot_reliability, plot_tradeoffs
from hf_shrink.publishing.metadata import title
from hf_shrink.publishing.page import PAGE, Structure, page
from hf_shrink.publishing.private import published
from hf_shrink.workspace import Workspace


def write_page(work: Workspace) -> None:
    """``report.html`` beside the report of a run."""

    def write(fresh: Path) -> dict[str, Any]:
        (fresh / PAGE).write_text(run_page(work.folder), encoding="utf-8")
        return {}

    if work.result("page") is None:
        work.write_artefact("page", write)


def run_page(folder: Path) -> str:
    """The page of a finished run, from its report and the weights beside it.

    Raises:
        IntegrityError: a file is damaged.
    """
    report = published(json.loads((folder / NAME).read_text(encoding="utf-8")))
    stages = [Report.from_stage(stage) for stage in report["stages"]]
    table = compare(stages, baseline=report["baseline"])
    told = [artefact(stages), *(i for i, stage in enumerate(stages) if stage.name == FOLDER)]
    return page(
        title(report),
        table,
        columns=[i for i in told if i != table.baseline],
        remarks=report["remarks"],
        structures=_structures([(stages[artefact(stages)].shown, folder)]),
        recipes={"hf_shrink_recipe.yaml": report["recipe"]},
        version=report["hf_shrink"],
    )


def compared(references: Sequence[str], *, plots: Path | None = None, html: Path | None = None) -> Comparison:
    """The table of ``compare_models``, and what is to be drawn of it.

    Args:
        references: folders, Hub ids or ``package:NAME/PATH``.
        plots: folder for quality against size and latency, and reliability, as PNG and SVG; None draws nothing.
        html: file for the page; None writes none.

    Raises:
        ShrinkError: as ``compare_models``, before measuring anything also where nothing could be drawn or written.
    """
    if html is not None and not html.parent.is_dir():
        raise ResourceError(f"{html.name}: cannot be written: its folder does not exist; make it, or choose another file.")
    if plots is not None and (bare := [r for r in references if not (local_folder(r) / NAME).is_file()]):
        raise RecipeError(
            f"--plots: {shown(bare[0])} has no {NAME}, so no quality to draw; give folders of runs, or leave it out."
        )
    table = compare_models(references)
    if plots is not None:
        plot_tradeoffs(table, plots)
        if any(report.reliability for report in table.reports):
            plot_reliability(table.reports, plots)
    if html is not None:
        try:
            write_text(html, _comparison_page(references, table))
        except OSError as error:
            raise ResourceError(f"{html.name}: cannot be written: {error.strerror}; choose another file.") from None
    return table


def _comparison_page(references: Sequence[str], table: Comparison) -> str:
    folders = [local_folder(reference) for reference in references]
    alone = len(folders) == 1
    names = [table.titles[artefact(table.reports)]] if alone else table.titles
    recipes = {}
    for name, folder in zip(names, folders, strict=True):
        if (folder / NAME).is_file() and (made := json.loads((folder / NAME).read_text(encoding="utf-8")).get("recipe")):
            recipes[name] = made
    return page(
        f"{folders[0].resolve().name}" if alone else f"{len(folders)} models side by side",
        table,
        columns=[i for i in range(len(table.titles)) if i != table.baseline],
        structures=_structures(list(zip(names, folders, strict=True))),
        recipes=recipes,
    )


def _structures(models: Sequence[tuple[str, Path]]) -> list[Structure]:
    """What each folder holds; a graph does not say what its layers are."""
    found = []
    for name, folder in models:
        try:
            inside = inspect_model(str(folder))
        except MismatchError:
            continue
        found.append(Structure(name, inside.heading, inside.grid()))
    return found
