"""Pictures of results; the one file that needs matplotlib (the extra ``plots``)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity
from hf_shrink.quantization.mixed_table import MixedPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#7a7a7a"
"""Text and axes: a grey that reads on white and on the Hub's dark page; the background is left to the page."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""The four of Okabe and Ito's colours for the colour-blind that stand out from white and from dark alike."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: Any = {
    "svg.hashsalt": "hf_shrink",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_sensitivity(result: Sensitivity, folder: str | Path, *, name: str = "sensitivity") -> tuple[Path, ...]:
    """Loss over fraction removed as ``NAME.png`` and ``NAME.svg``: one panel a part of the model, one line a layer.

    Transparent, in tones that read on light and dark pages; equal bytes for equal results and one version of matplotlib.

    Args:
        result: with one point or more.
        folder: made where it is missing.
        name: of the files, without an ending.

    Raises:
        ResourceError: matplotlib is not installed, or the folder cannot be written.
        RecipeError: there is nothing to draw.
    """
    panels = _panels(result)
    if not panels:
        raise RecipeError("plots: the sensitivity has no points to draw; measure one mask or more.")
    draws: list[Callable[[Axes], None]] = [partial(_draw, title=t, lines=found, result=result) for t, found in panels.items()]
    return write_panels(draws, Path(folder), name, columns=3, size=(4.6, 3.6))


def plot_histograms(
    layers: Mapping[str, tuple[float, float, Sequence[int]]], folder: str | Path, *, name: str = "weights"
) -> tuple[Path, ...]:
    """How the weights of each layer are spread, as ``NAME.png`` and ``NAME.svg``; a logarithmic axis of counts.

    Args:
        layers: name -> mean, width of a bin, and the counts of bins around the mean; one or more.
        folder: made where it is missing.
        name: of the files, without an ending.

    Raises:
        ResourceError: matplotlib is not installed, or the folder cannot be written.
    """
    draws: list[Callable[[Axes], None]] = [partial(_draw_histogram, title=title, bins=bins) for title, bins in layers.items()]
    return write_panels(draws, Path(folder), name, columns=4, size=(3.2, 2.2))


def plot_trade(plan: MixedPlan, folder: str | Path, *, name: str = "bits") -> tuple[Path, ...]:
    """What KL costs in bytes, as ``NAME.png`` and ``NAME.svg``: every choice of ``bits: auto``, and what was stored.

    Args:
        plan: what was decided.
        folder: made where it is missing.
        name: of the files, without an ending.

    Raises:
        ResourceError: matplotlib is not installed, or the folder cannot be written.
    """
    return write_panels([partial(_draw_trade, plan=plan)], Path(folder), name, columns=1, size=(5.6, 4.0))


def write_panels(
    draws: "Sequence[Callable[[Axes], None]]", folder: Path, name: str, *, columns: int, size: tuple[float, float]
) -> tuple[Path, ...]:
    """One panel for each of ``draws``, in a PNG and an SVG; arguments and errors as in ``plot_sensitivity``.

    Args:
        draws: each draws one panel.
        columns: of panels, at most.
        size: of a panel, in inches.
    """
    try:
        from matplotlib import rc_context, rcdefaults, rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("plots: matplotlib is not installed. Try: pip install 'hf-shrink[plots]'") from None
    paths = tuple(folder / f"{name}.{ending}" for ending in ("png", "svg"))
    with rc_context():
        rcdefaults()  # a user's own settings would give other bytes
        rcParams.update(_STYLE)
        rows = -(-len(draws) // columns)
        columns = min(len(draws), columns)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        for axes, draw in zip(figure.subplots(rows, columns, squeeze=False).flat, draws, strict=False):
            draw(axes)
        for axes in figure.axes[len(draws) :]:
            axes.set_axis_off()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                dated: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
                figure.savefig(path, dpi=144, transparent=True, metadata=dated)
        except OSError as error:
            raise ResourceError(f"plots: {folder.name!r} cannot be written: {error.strerror}; choose another.") from None
    return paths


def style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of line ``index``: the first 16 differ without the marker, and all up to 112 with it."""
    turn = index // (len(COLOURS) * len(DASHES))
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[(index % len(COLOURS) + turn) % len(MARKERS)],
    }


def _panels(result: Sensitivity) -> dict[str, list[tuple[str, Sequence[Point]]]]:
    """For each part of the model its lines: a label and the points."""
    found: dict[str, list[tuple[str, Sequence[Point]]]] = {}
    for points in result.by_group().values():
        first = points[0]
        part = first.kind.rpartition(":")[0] or first.kind
        label = "all layers" if first.layer is None else f"layer {first.layer}"
        found.setdefault(f"{first.structure}\n{part}", []).append((label, points))
    return found


def _draw_trade(axes: "Axes", plan: MixedPlan) -> None:
    megabytes = [trade.bytes / 1e6 for trade in plan.trades]
    axes.plot(
        megabytes, [trade.predicted for trade in plan.trades], label="sum of the layers' own", linewidth=1.8, color=COLOURS[0]
    )
    for index, (name, trade) in enumerate(plan.measured.items()):
        look: Any = {**style(index + 1), "linestyle": "none"}
        axes.plot([trade.bytes / 1e6], [trade.loss], label=f"{name}, as stored", markersize=7, **look)
    axes.set_xlabel("weights file (MB)")
    axes.set_ylabel("mean KL from the float model (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8)


def _draw_histogram(axes: "Axes", title: str, bins: tuple[float, float, Sequence[int]]) -> None:
    mean, width, counts = bins
    edges = [mean + width * (index - len(counts) / 2) for index in range(len(counts) + 1)]
    axes.stairs(counts, edges, fill=True, color=COLOURS[0])
    axes.set_yscale("symlog", linthresh=1)
    axes.set_title(title, fontsize=6)
    axes.set_ylabel("weights", fontsize=7)
    axes.tick_params(labelsize=6)


_NOUNS = {"heads": "heads", "ffn": "neurons", "block": "blocks", "layers": "layer", "hidden": "width"}


def _draw(axes: "Axes", title: str, lines: Sequence[tuple[str, Sequence[Point]]], result: Sensitivity) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    for index, (label, points) in enumerate(lines):
        removed = [0.0, *(100 * point.fraction for point in points)]
        axes.plot(removed, [0.0, *(point.loss for point in points)], label=label, linewidth=1.8, markersize=5, **style(index))
    axes.set_title(title, fontsize=9)
    noun = _NOUNS.get(lines[0][1][0].structure, "weights")
    axes.set_xlabel(f"{noun} removed (%)")
    axes.set_ylabel(f"{result.words.name} lost" + (f" ({result.words.unit})" if result.words.unit else ""))
    axes.set_xlim(0, 100)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8, handlelength=3, ncols=1 + (len(lines) - 1) // 8)
