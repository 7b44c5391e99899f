"""``hf-shrink export --onnx``: graphs of a saved model."""

from pathlib import Path
from typing import Literal

from hf_shrink.errors import RecipeError
from hf_shrink.loading.onnx_export import OnnxExport, export_onnx
from hf_shrink.models.load import load_model
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.recipe import Recipe
from hf_shrink.samples import labelled, plain, tokenizer_of
from hf_shrink.shortcut import check_empty


def export_for_onnx(
    source: Path, folder: Path, mode: Literal["dynamic", "static"], *, recipe: Recipe | None = None, texts: Path | None = None
) -> OnnxExport:
    """Graphs of the float model in ``source`` for ONNX Runtime in ``folder``, which must not hold anything yet.

    Args:
        source: a folder with a model of any shapes.
        mode: ``static`` calibrates on the training rows of ``recipe``, or on ``texts``, a sample a line.

    Raises:
        ShrinkError: whatever is wrong; nothing is written then.
    """
    check_empty(folder)
    if (mode == "static") != (recipe is not None or texts is not None):
        raise RecipeError("export --onnx: --mode static needs --recipe or --texts to calibrate on; no other mode reads them.")
    config = QuantizationConfig(backend="onnx", mode=mode)
    model, tokenizer = load_model(str(source)), tokenizer_of(str(source), None)
    batches = None
    if recipe is not None or texts is not None:
        if tokenizer is None:
            raise RecipeError("calibration: the model comes without a tokenizer to read texts with.")
        batches = labelled(recipe, tokenizer) if recipe is not None else plain(texts, tokenizer, model)
    return export_onnx(model, folder, config, tokenizer=tokenizer, calibration=batches)
