"""``hf-shrink export --onnx``: graphs of a saved model."""

from collections.abc import Sequence
from pathlib import Path

from hf_shrink.errors import RecipeError
from hf_shrink.loading.onnx_export import OnnxExport, export_onnx
from hf_shrink.models.load import load_model
from hf_shrink.recipe import Recipe
from hf_shrink.samples import labelled, plain, tokenizer_of
from hf_shrink.shortcut import check_empty, quantization_of


def export_for_onnx(
    source: Path, folder: Path, words: Sequence[str], *, recipe: Recipe | None = None, texts: Path | None = None
) -> OnnxExport:
    """Graphs of the float model in ``source`` for ONNX Runtime in ``folder``, which must not hold anything yet.

    Args:
        source: a folder with a model of any shapes.
        words: of a ``QuantizationConfig`` with the backend ``onnx``, as ``KEY=VALUE`` with values in YAML. ``mode=static``
            calibrates on the training rows of ``recipe``, or on ``texts``, a sample a line.

    Raises:
        ShrinkError: whatever is wrong; nothing is written then.
    """
    check_empty(folder)
    config = quantization_of(words if any(word.startswith("backend=") for word in words) else ["backend=onnx", *words])
    if config.backend != "onnx":
        raise RecipeError(f"export --onnx: the backend is onnx; for {config.backend}, run: hf-shrink quantize MODEL FOLDER")
    if (config.mode == "static") != (recipe is not None or texts is not None):
        raise RecipeError("export --onnx: --mode static needs --recipe or --texts to calibrate on; no other mode reads them.")
    model, tokenizer = load_model(str(source)), tokenizer_of(str(source), None)
    batches, rows = None, config.calibration_rows
    if recipe is not None or texts is not None:
        if tokenizer is None:
            raise RecipeError("calibration: the model comes without a tokenizer to read texts with.")
        batches = labelled(recipe, tokenizer, rows) if recipe is not None else plain(texts, tokenizer, model, rows)
    return export_onnx(model, folder, config, tokenizer=tokenizer, calibration=batches)
