"""The tensors of a checkpoint under the names that a model has for them, read one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.quantization.cast import dtype_of


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies."""

    file: str
    key: str
    shape: tuple[int, ...]


class Checkpoint:
    """Reads what ``from_pretrained`` is about to load, in the precision in which it will.

    Files are opened for each tensor and closed after it: pages of a mapped file count as this process's memory.
    """

    def __init__(self, files: Sequence[str], model: Any) -> None:
        """Read the headers.

        Args:
            files: safetensors files.
            model: on meta, as the class builds it from the config; stays as it is.

        Raises:
            RecipeError: files of another kind, or a family whose weights are stored in another form than they are used in.
            IntegrityError: a damaged file.
        """
        self._dtypes: dict[str, torch.dtype] = {}
        expected = model.state_dict()
        self._places = _places(files, model, expected)
        self._twins: dict[str, str] = {}
        for one, two in model.all_tied_weights_keys.items():
            self._twins |= {one: two, two: one}
        for name, tensor in expected.items():
            if tensor.is_floating_point():
                self._dtypes[name] = dtype_of(model, name, model.config.dtype)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}

    def __contains__(self, name: str) -> bool:
        """Whether ``name`` comes from a file; not where the file has it in another shape, as another task's head."""
        place = self._place(name)
        return place is not None and place.shape == self._shapes[name]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        place = self._place(name)
        assert place is not None, name
        try:
            with safe_open(place.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(place.key)
        except SafetensorError as error:
            raise IntegrityError(f"{Path(place.file).name}: damaged: {error}.") from None
        return tensor.to(self._dtypes.get(name, tensor.dtype))

    def _place(self, name: str) -> _Place | None:
        return self._places.get(name) or self._places.get(self._twins.get(name, ""))


def _places(files: Sequence[str], model: Any, expected: dict[str, Any]) -> dict[str, _Place]:
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    found = {}
    for path in files:
        if not path.endswith(".safetensors"):
            raise RecipeError(
                f"{Path(path).name}: while loading, only safetensors are pruned and quantised; others can run code.\n"
                "Load it without quantization_config and save_pretrained() it; the folder that makes can be loaded so."
            )
        for key, shape in _headers(path):
            name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
            if converted is not None:
                kind = model.config.model_type
                raise RecipeError(f"{key}: weights of {kind!r} are put together while loading. Load in float, then prune().")
            found[name] = _Place(path, key, shape)
    return found


def _headers(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield key, tuple(file.get_slice(key).get_shape())
    except SafetensorError as error:
        raise IntegrityError(f"{Path(path).name}: damaged: {error}.") from None
