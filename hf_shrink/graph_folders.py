"""Which folders hold graphs for ONNX Runtime, and which hold nothing else."""

from pathlib import Path

from hf_shrink.errors import MismatchError
from hf_shrink.onnx_model import FOLDER, INT8


def holds_graph(folder: Path) -> bool:
    """Whether a folder is the ``onnx`` folder of an artefact: graphs, and the config above them."""
    return not (folder / "config.json").exists() and (folder / INT8).is_file()


def refuse_graphs(folder: Path) -> None:
    """For what reads weights. Raises MismatchError where a folder holds graphs and no weights."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if holds_graph(folder) or ((folder / FOLDER / INT8).is_file() and not weights):
        above = folder if folder.name != FOLDER else folder.parent
        raise MismatchError(
            f"{folder.name}: a graph for ONNX Runtime, without the weights of layers.\n"
            f"Size and speed: hf-shrink measure {above.name}/{FOLDER}"
        )
