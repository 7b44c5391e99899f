"""Prune and quantise tensor by tensor, as ``from_pretrained`` reads them: the whole float model is never in memory."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.finite import check_finite
from hf_shrink.loading.checkpoint import Checkpoint
from hf_shrink.loading.narrowing import Narrowing, narrow
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.quantization.bitsandbytes import skip_names
from hf_shrink.quantization.cast import dtype_of
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import check_tables, round_embeddings
from hf_shrink.quantization.plan import KEPT, Plan, keep_plan
from hf_shrink.targets import projections


class Stream:
    """What is done to one model while it is loaded. ``prepare`` comes before the weights, ``finish`` after them."""

    def __init__(self, pruning: Sequence[PruningConfig], quantization: QuantizationConfig | None) -> None:
        """Nothing is done yet."""
        self._pruning, self._quantization = tuple(pruning), quantization
        self._checkpoint: Checkpoint | None = None
        self._narrowing = Narrowing()
        self._plan = Plan((), {})
        self._quantized: set[str] = set()
        self._expected: set[str] = set()
        self._bad: dict[str, int] = {}

    def prepare(self, model: PreTrainedModel, files: Sequence[str] | None) -> list[str]:
        """Give ``model``, which is on meta, the structure it will have, in place.

        Args:
            model: as its class builds it.
            files: the checkpoint; None where weights come from a state dict.

        Returns:
            Names of the layers that stay in high precision, for ``llm_int8_skip_modules``.

        Raises:
            RecipeError: what ``prune`` and ``keep_plan`` refuse, pruning without files, and two words for the dtype.
        """
        self._refuse_two_dtypes(model, files)
        _tie(model)
        self._checkpoint = checkpoint = None if files is None else Checkpoint(files, model)
        if self._pruning:
            if checkpoint is None:
                raise RecipeError("pruning: a state dict is in memory already; load it in float, then call prune().")
            with _ordinary():
                small, self._narrowing = narrow(model, self._pruning, checkpoint)
            if small is not model:
                vars(model).update(vars(small))  # transformers goes on with the object that it has
        if self._quantization is not None:
            check_tables(model, self._quantization)
        if self._quantization is None or self._quantization.bits == 16:
            return []
        original = self._narrowing.original
        new = [n for n in projections(model) if checkpoint is not None and original(f"{n}.weight") not in checkpoint]
        self._plan = keep_plan(model, self._quantization, new)
        self._quantized = {original(f"{name}.weight") for name in self._plan.quantized}
        return skip_names(model, self._plan.quantized, tuple(self._plan.kept))

    def number_as_stored(self, model: Any) -> None:
        """Let the layers that are left have the numbers that they have in the files, until ``finish``."""
        for path, kept in self._narrowing.layers.items():
            layers = model.get_submodule(path)
            layers._modules = {str(number): layer for number, layer in zip(kept, layers._modules.values(), strict=True)}
        self._expected = set(model._keys_to_ignore_on_load_unexpected or ())
        gone = {rf"^{re.escape(path)}\.\d+\." for path in self._narrowing.layers}
        model._keys_to_ignore_on_load_unexpected = self._expected | gone

    def changes(self, model: Any, name: str) -> bool:
        """Whether the tensor ``name`` is not loaded as it is stored."""
        if self._checkpoint is not None and name not in self._checkpoint:
            return False  # another task's head: reported, or made anew
        return name in self._narrowing or self._dtype is not None

    def apply(self, model: Any, name: str, tensor: Tensor) -> Tensor:
        """What the stored ``tensor`` becomes; a weight to be quantised is still in float."""
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            self._bad[name] = int((~torch.isfinite(tensor)).sum())
            return tensor  # transformers swallows what is raised here
        tensor = self._narrowing.apply(name, tensor, passing=name in self._quantized)
        if self._dtype is None or not tensor.is_floating_point():
            return tensor
        assert self._quantization is not None
        if name in self._quantized:  # int8 is made from all digits there are, see quantization.bitsandbytes.store
            return tensor if self._quantization.bits == 8 else tensor.to(self._dtype)
        return tensor.to(dtype_of(model, name, self._dtype))

    def finish(self, model: Any) -> None:
        """Put in order what had to wait for the weights.

        Raises:
            NonFiniteError: a weight is NaN or infinite, or too large for the new precision.
        """
        for path in self._narrowing.layers:
            layers = model.get_submodule(path)
            layers._modules = {str(number): layer for number, layer in enumerate(layers._modules.values())}
        model._keys_to_ignore_on_load_unexpected = self._expected
        if self._bad:
            name, count = next(iter(self._bad.items()))
            raise NonFiniteError(
                f"{self._narrowing.original(name)}: {count} values are NaN or infinite, in {len(self._bad)} tensors in all.\n"
                "Use a checkpoint that is whole."
            )
        if self._dtype is not None:
            _cast(model, self._dtype)
        if self._quantization is not None:
            round_embeddings(model, self._quantization)
        if self._plan.quantized:
            setattr(model.config, KEPT, dict(self._plan.kept))
        for name in self._plan.quantized:
            scales = getattr(model.get_parameter(f"{name}.weight"), "SCB", None)
            if scales is not None and not torch.isfinite(scales).all():
                raise NonFiniteError(
                    f"quantization: {name}.weight has values above 65504, too large for 8 bits. Put it in skip_modules."
                )
        check_finite(model, "quantization" if self._quantization is not None else "pruning")

    def _refuse_two_dtypes(self, model: PreTrainedModel, files: Sequence[str] | None) -> None:
        """By then the folder's own dtype and one from the caller look alike: the caller's is what config.json does not say."""
        path = None if not files else Path(files[0]).with_name("config.json")
        stored = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
        loaded = model.config.dtype
        own = stored.get("dtype", stored.get("torch_dtype"))
        if self._dtype is not None and own is not None and str(loaded).removeprefix("torch.") != own and loaded != self._dtype:
            raise RecipeError(f"from_pretrained: dtype {loaded} and quantization.dtype {self._dtype}; give one of the two.")

    @property
    def _dtype(self) -> torch.dtype | None:
        asked = None if self._quantization is None else self._quantization.dtype
        return None if asked is None else getattr(torch, asked)


def _tie(model: Any) -> None:
    """Let tied ends be one parameter, as in a model that is not just being loaded."""
    for name, source in model.all_tied_weights_keys.items():
        path, _, attribute = name.rpartition(".")
        model.get_submodule(path)._parameters[attribute] = model.get_parameter(source)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Weights that came from no file; the others have been cast, and what is quantised holds whole numbers."""
    stored = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and name in stored:
            tensor.data = tensor.data.to(dtype_of(model, name, dtype))
    model.config.dtype = dtype


@contextmanager
def _ordinary() -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU; while transformers builds a model they are on meta and as the model is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


class StreamOperation(ConversionOps):
    """One tensor on its way from the file into the model."""

    def __init__(self, stream: Stream, quantizer: Any) -> None:
        """``quantizer``: transformers' own, where anything is quantised."""
        self._stream, self._quantizer = stream, quantizer

    def convert(self, input_dict: Mapping[str, Any], model: Any = None, **more: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Cut, then quantise or cast."""
        done: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            tensor = self._stream.apply(model, name, value[0] if isinstance(value, list) else value)
            if self._quantizer is not None and self._quantizer.param_needs_quantization(model, name):
                done |= self._quantizer.get_quantize_ops().convert({name: tensor}, model=model, **more)
            else:
                done[name] = tensor
        return done
