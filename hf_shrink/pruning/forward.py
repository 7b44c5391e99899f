"""What a forward pass was called with, while it runs: which positions are no padding, and which sample has which label."""

import inspect
import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_shrink.errors import MismatchError, RecipeError

_NUMBERS = itertools.count(1)  # of all models: hooks may come off and go on again within a step


@dataclass(frozen=True)
class Pass:
    """One forward pass of a model.

    Attributes:
        number: of this pass alone.
        rows: samples in the batch.
        inputs: what the model was called with, by name.
    """

    number: int
    rows: int
    inputs: Mapping[str, Any]

    def labels(self, where: str) -> Tensor:
        """The class of each sample, int64 ``[rows]``; a ``RecipeError`` where there is no such thing."""
        labels = self.inputs.get("labels")
        if not isinstance(labels, Tensor) or labels.shape != (self.rows,) or labels.is_floating_point():
            came = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else "none"
            raise RecipeError(f"{where}: needs labels, one class for each of {self.rows} samples, but the batch has {came}.")
        return labels


class Forward:
    """Follows the forward passes of ``model``.

    Outside of one ``current`` is None, as where activation checkpointing computes activations again in backward.
    """

    def __init__(self, model: nn.Module, *, training_only: bool, beside: Mapping[str, Any] | None = None) -> None:
        """``beside`` holds, while the model runs, what its caller keeps to itself of a batch, as labels that it smooths."""
        self.current: Pass | None = None
        self._beside = {} if beside is None else beside
        self._model = model
        self._training_only = training_only
        self._signature = inspect.signature(model.forward)
        config = getattr(model, "config", None)
        self._encoder: Any = model.get_encoder() if getattr(config, "is_encoder_decoder", False) else None  # type: ignore[operator]
        self._encoded: Tensor | None = None
        self._in_encoder = set() if self._encoder is None else {id(module) for module in self._encoder.modules()}

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on, and their removal on ``stack``."""
        stack.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        stack.callback(self._model.register_forward_hook(self._end, always_call=True).remove)
        if self._encoder is not None:
            stack.callback(self._encoder.register_forward_hook(self._encoder_ends).remove)

    def layout(self, module: nn.Module, features: Tensor, where: str) -> tuple[Tensor, Tensor | None]:
        """The input of ``module`` by samples ``[rows, positions, in]``, and which positions count ``[rows, positions]``.

        All count, where None: the model has no mask, or ``module`` sees one position of each sample.

        Args:
            features: ``[rows, positions, in]``, ``[rows, in]`` or ``[rows * positions, in]``.

        Raises:
            MismatchError: the input has other rows or positions than the batch and its mask.
        """
        assert self.current is not None
        rows = self.current.rows
        if features.numel() % (rows * features.shape[-1]) or (features.dim() > 2 and len(features) != rows):
            raise MismatchError(f"{where}: input {list(features.shape)}, but the batch has {rows} samples.")
        by_sample = features.reshape(rows, -1, features.shape[-1])
        mask = self._mask(module, features)
        if mask is None or features.shape == (rows, features.shape[-1]):
            return by_sample, None
        if mask.shape != by_sample.shape[:2]:
            raise MismatchError(
                f"{where}: mask {list(mask.shape)} for an input of {list(by_sample.shape[:2])} positions; "
                "pass an attention_mask of one number a position."
            )
        mask = mask.to(features.device).bool()
        return by_sample, None if bool(mask.all()) else mask

    def _mask(self, module: nn.Module, features: Tensor) -> Tensor | None:
        assert self.current is not None
        inputs = self.current.inputs
        mask: Tensor | None = inputs.get("attention_mask")
        if self._encoder is None or id(module) in self._in_encoder or self._is_encoded(features):
            return mask
        mask, labels = inputs.get("decoder_attention_mask"), inputs.get("labels")
        if mask is None and isinstance(labels, Tensor) and labels.dim() == 2:
            mask = labels != -100  # a decoder without a mask of its own reads the labels, one position to the right
        return mask

    def _is_encoded(self, features: Tensor) -> bool:
        """Whether a module of the decoder reads what the encoder gave, as cross-attention does."""
        return (
            self._encoded is not None
            and features.shape == self._encoded.shape
            and features.data_ptr() == self._encoded.data_ptr()
        )

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.current = self._encoded = None
        if self._training_only and not model.training:
            return
        inputs = dict(self._signature.bind_partial(*args, **kwargs).arguments) | kwargs
        rows = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), None)
        if rows is None:
            raise RecipeError(f"{type(model).__name__}: called without a tensor; pass the batch by name.")
        self.current = Pass(next(_NUMBERS), rows, {**self._beside, **inputs})
        if inputs.get("encoder_outputs") is not None:
            self._encoded = inputs["encoder_outputs"][0]

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        self.current = self._encoded = None

    def _encoder_ends(self, encoder: nn.Module, args: Any, output: Any) -> None:
        self._encoded = output[0]
