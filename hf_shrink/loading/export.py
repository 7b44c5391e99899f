"""``export --uniform``: a folder that only hf_shrink can load becomes one that plain transformers loads."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.table import Table
from transformers import PreTrainedModel

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ShrinkError
from hf_shrink.finite import check_finite
from hf_shrink.loading.save import save
from hf_shrink.loading.uniform import Cost, example_inputs, uniform
from hf_shrink.loading.verify import load_strictly, verify

_BESIDE = {".json", ".txt", ".model", ".jinja"}
"""What tokenizers and processors are stored in."""
_OTHERS = ("config.json", "generation_config.json", "model.safetensors.index.json", "hf_shrink_", "trainer_state.json")
"""What such files are not: written by saving a model, or about another model than the exported one."""


@dataclass(frozen=True)
class Export:
    """A stock folder that was written, loaded again and compared.

    Attributes:
        folder: where it is.
        cost: what doing without the loader costs.
        num_tensors: weights that were compared bit by bit after loading.
    """

    folder: str
    cost: Cost
    num_tensors: int

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {"folder": self.folder, "cost": self.cost.to_json(), "num_tensors": self.num_tensors}

    def rich(self) -> Table:
        """A table for the terminal."""
        table = self.cost.rich()
        table.title = f"{Path(self.folder).name}: loads with plain transformers, {self.num_tensors} weights compared"
        return table


def export_uniform(source: Path, target: Path) -> Export:
    """Write the model in ``source`` to ``target`` in the stock tier, with its tokenizer or processor, and load it again.

    Args:
        source: a folder with a float model of any shapes; stays as it is.
        target: a folder that is empty or not there. Nothing is left in it when something fails.

    Raises:
        RecipeError: ``target`` holds something.
        MismatchError: no model to load in ``source``, or shapes that cannot be padded (see ``uniform``).
        IntegrityError: ``source`` is damaged, or the new folder does not load to the same numbers.
        ResourceError: the disk is full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target.name}: is there already and stays as it is; name a new folder.")
    model = load_strictly(source, _class_of(source), torch.device("cpu"))
    check_finite(model, source.name)
    padded, cost = uniform(model)
    try:
        if save(padded, target) != "stock":
            raise IntegrityError(f"{target.name}: still not what plain transformers builds.")
        for path in _beside(source):
            shutil.copyfile(path, target / path.name)
        reload = verify(target, padded, example_inputs(padded))
    except (ShrinkError, OSError):
        shutil.rmtree(target, ignore_errors=True)
        raise
    return Export(str(target), cost, reload.num_tensors)


def _class_of(folder: Path) -> type[PreTrainedModel]:
    """The class that the folder was saved from."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except FileNotFoundError:
        raise MismatchError(f"{folder.name}: no config.json; name the folder that save_pretrained wrote.") from None
    except (ValueError, AttributeError):
        raise IntegrityError(f"{folder.name}/config.json: not valid JSON, or no JSON object.") from None
    found = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise MismatchError(f"{folder.name}/config.json: architectures {names!r} name no model of transformers.")
    return found


def _beside(folder: Path) -> list[Path]:
    """Files of the tokenizer or processor: the small ones that saving a model does not write."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix in _BESIDE and not path.name.startswith(_OTHERS)
    )
