"""``hf-shrink``: one short function a command. stdout is the result, stderr the progress, the exit code the verdict.

torch and transformers are imported inside the commands, so that ``--help`` answers at once.
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_shrink import cli_cache, cli_hub
from hf_shrink.errors import RecipeError
from hf_shrink.terminal import Json, Overrides, RecipeFile, reported, show
from hf_shrink.terminal import recipe_of as _recipe

app = typer.Typer(
    help="Make Transformers models several times smaller while they are fine-tuned, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


Folders = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, Hub ids or package:NAME/PATH.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, Hub id or package:NAME/PATH.")]


def main() -> None:
    """The console script."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # every bar of every library, where nobody would see it move
    # On import it asks for a package with a faster kernel, whatever the command is about.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    app(prog_name="hf-shrink")


@app.command()
@reported
def run(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006 - typer reads the default
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that is in use.")] = False,
    accept_changes: Annotated[
        list[str], typer.Option(metavar="KEY", help="Go on although this key of the recipe changed.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Run a recipe from data to card. Run it again to go on where it stopped."""
    parsed = _recipe(recipe, set_)
    from hf_shrink.pipeline import run as run_recipe

    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the result
        outcome = run_recipe(parsed, overwrite=overwrite, accept_changes=tuple(accept_changes))
    if outcome.report:  # processes that only trained along have nothing to show
        show(outcome, as_json)


@app.command()
@reported
def plan(recipe: RecipeFile, set_: Overrides = [], as_json: Json = False) -> None:  # noqa: B006
    """Say what a recipe would do, without training and without downloading anything."""
    parsed = _recipe(recipe, set_)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # read when the Hub client is imported, which is below
    from hf_shrink.plan import make_plan

    with contextlib.redirect_stdout(sys.stderr):
        result = make_plan(parsed)
    show(result, as_json)


@app.command()
@reported
def measure(
    model: Model,
    recipe: Annotated[Path | None, typer.Option(help="Take data and settings from this recipe, for quality too.")] = None,
    set_: Overrides = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Measure size, compute, memory and speed of any model, and its quality where a recipe names the data."""
    if set_ and recipe is None:
        raise RecipeError("--set changes a recipe, and none is given; add --recipe FILE.")
    parsed = _recipe(recipe, set_) if recipe else None
    from hf_shrink.judging import measure_model

    with contextlib.redirect_stdout(sys.stderr):
        result = measure_model(model, parsed)
    show(result, as_json)


@app.command()
@reported
def compare(
    models: Folders,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line a number.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for charts, as PNG and SVG; needs hf-shrink\\[plots].")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with table, charts, layers and recipes here.")] = None,
    as_json: Json = False,
) -> None:
    """Put several runs or models side by side; the first is the baseline."""
    if markdown + as_json + as_csv > 1:
        raise RecipeError("--markdown, --csv and --json: choose one.")
    from hf_shrink.pages import compared

    with contextlib.redirect_stdout(sys.stderr):
        result = compared(models, plots=plots, html=html)
    if markdown:
        typer.echo(result.markdown())
    elif as_csv:
        typer.echo(result.csv(), nl=False)
    else:
        show(result, as_json)


@app.command()
@reported
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what a folder or Hub id holds: tier, layers, widths, zeros, bytes and dtypes."""
    from hf_shrink.inspection import inspect_model

    with contextlib.redirect_stdout(sys.stderr):
        result = inspect_model(model)
    show(result, as_json)


@app.command()
@reported
def prune(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write the pruned model; new or empty.")],
    structure: Annotated[str, typer.Option(help="What goes: unstructured, n_of_m, block, heads, ffn, layers, hidden.")],
    sparsity: Annotated[float | None, typer.Option(help="Fraction that goes, in [0, 1).")] = None,
    criterion: Annotated[str, typer.Option(help="What scores it; the lowest scores go.")] = "magnitude",
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Another key of a pruning entry: --set pattern=[2,4]")
    ] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hub id.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Calibrate on the training texts of this recipe.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Calibrate on this text file, a sample a line.")] = None,
    save_recipe: Annotated[Path | None, typer.Option(help="With --recipe: write it with this entry as a recipe.")] = None,
    as_json: Json = False,
) -> None:
    """Prune a model at once, without training, and write one that loads again."""
    if recipe is not None and texts is not None:
        raise RecipeError("--recipe and --texts: choose one.")
    if save_recipe is not None and recipe is None:
        raise RecipeError("--save-recipe writes --recipe FILE with this entry, and none is given; add --recipe FILE.")
    parsed = _recipe(recipe, []) if recipe else None
    from hf_shrink.shortcut import entry_of, prune_model

    with contextlib.redirect_stdout(sys.stderr):
        entry = entry_of(structure, criterion, sparsity, set_)
        result = prune_model(model, folder, entry, revision=revision, recipe=parsed, texts=texts, save_recipe=save_recipe)
    show(result, as_json)


@app.command()
@reported
def quantize(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write the quantised model; new or empty.")],
    bits: Annotated[
        str | None,
        typer.Option(
            help="8 (default) or 4 by bitsandbytes; 16 casts (--set dtype=bfloat16); auto chooses (--set budget.bytes=N)."
        ),
    ] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Another key of the section: --set quant_type=fp4")
    ] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hub id.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="--bits auto: measure on the training texts of this recipe.")] = None,
    texts: Annotated[Path | None, typer.Option(help="--bits auto: measure on this text file, a sample a line.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Add each layer's weights, scheme, error and bytes.")] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for pictures of weights and bits; needs hf-shrink\\[plots].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store a model in fewer bits, without training, and write one that loads again."""
    if recipe is not None and texts is not None:
        raise RecipeError("--recipe and --texts: choose one.")
    parsed = _recipe(recipe, []) if recipe else None
    from hf_shrink.shortcut import quantize_model

    with contextlib.redirect_stdout(sys.stderr):
        words = [*([] if bits is None else [f"bits={bits}"]), *set_]
        result = quantize_model(model, folder, words, revision=revision, recipe=parsed, texts=texts, report=report, plots=plots)
    show(result, as_json)


@app.command()
@reported
def sensitivity(
    recipe: RecipeFile,
    set_: Overrides = [],  # noqa: B006
    rows: Annotated[int, typer.Option(help="Validation rows that each smaller model is scored on.")] = 256,
    fraction: Annotated[list[float], typer.Option(help="Fraction of each mask to try; may be repeated.")] = [0.25, 0.5, 0.75],  # noqa: B006
    latency: Annotated[bool, typer.Option(help="Time the smaller models, too.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the curves, as PNG and SVG; needs hf-shrink\\[plots].")] = None,
    as_json: Json = False,
) -> None:
    """Say what each layer's heads and neurons are worth: the quality lost when a part of them goes."""
    parsed = _recipe(recipe, set_)
    from hf_shrink.sensitivity import measure_sensitivity

    with contextlib.redirect_stdout(sys.stderr):
        result = measure_sensitivity(parsed, rows=rows, fractions=tuple(fraction), latency=latency, plots=plots)
    show(result, as_json)


@app.command()
@reported
def export(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of a model.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; new or empty.")],
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Pad layers of different shapes, so that plain transformers loads it.")
    ] = False,
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Add a file that loads it for users who trust remote code.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Graphs in int8 for ONNX Runtime and transformers.js.")] = False,
    mode: Annotated[
        Literal["dynamic", "static"] | None, typer.Option(help="--onnx: when ranges are found; dynamic while it runs.")
    ] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="--onnx: another key of the section: --set float_graph=true")
    ] = [],  # noqa: B006
    recipe: Annotated[Path | None, typer.Option(help="--mode static: calibrate on the training texts of this recipe.")] = None,
    texts: Annotated[Path | None, typer.Option(help="--mode static: calibrate on this text file, a sample a line.")] = None,
    as_json: Json = False,
) -> None:
    """Write a model in another form; the source stays as it is."""
    if uniform + remote_code + onnx != 1:
        raise RecipeError("export: choose one form: --uniform, --remote-code, or --onnx.")
    if not onnx and (mode or set_ or recipe or texts):
        raise RecipeError("export: --mode, --set, --recipe and --texts belong to --onnx; leave them out.")
    parsed = _recipe(recipe, []) if recipe else None
    from hf_shrink.graphs import export_for_onnx
    from hf_shrink.loading.export import export_uniform
    from hf_shrink.shortcut import export_with_code

    with contextlib.redirect_stdout(sys.stderr):
        result: Any
        if onnx:
            result = export_for_onnx(source, folder, [*([f"mode={mode}"] if mode else []), *set_], recipe=parsed, texts=texts)
        else:
            result = export_uniform(source, folder) if uniform else export_with_code(source, folder)
    show(result, as_json)


@app.command()
@reported
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the recipe.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe to start from. A file that is there is left alone."""
    from hf_shrink.recipe import STARTER

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        raise RecipeError(f"{path.name}: is there already and stays as it is; name another file.") from None
    typer.echo(f"wrote {path}; next: hf-shrink plan {path}")


@app.command()
@reported
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from hf_shrink.recipe import Recipe

    typer.echo(json.dumps(Recipe.json_schema(), indent=1))


@app.command()
@reported
def env(as_json: Json = False) -> None:
    """Print versions for a bug report."""
    from hf_shrink.measurement.environment import environment

    facts = environment()
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(f"{name}: {value}" for name, value in facts.items()))


for command in (*cli_cache.COMMANDS, *cli_hub.COMMANDS):
    app.command()(command)
