"""How the layers of a model are called: taken down in one forward pass, so that each can be run again alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.calibrate import explained

_Recorded: TypeAlias = tuple[Tensor, tuple[Any, ...], dict[str, Any]]  # hidden states, the rest by position and by name


@dataclass
class Call:
    """How the layers of one stack are called for one batch.

    Attributes:
        hidden: what goes into the next layer.
        rest: by layer name the other arguments, by position and by name.
        mask: which positions count, ``[rows, positions]``; None: all.
        encoded: the same for what comes from an encoder.
    """

    hidden: Tensor
    rest: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
    mask: Tensor | None
    encoded: Tensor | None

    def run(self, name: str, layer: nn.Module) -> Tensor:
        """The hidden states that ``layer`` puts out."""
        args, kwargs = self.rest[name]
        output = layer(self.hidden, *args, **kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def advance(self, name: str, layer: nn.Module) -> None:
        """Go on with what ``layer`` puts out, in the memory that held what it read: it would lie about in pieces otherwise."""
        output = self.run(name, layer)
        if output.shape == self.hidden.shape and output.dtype == self.hidden.dtype and output.device == self.hidden.device:
            self.hidden.copy_(output)
        else:
            self.hidden = output

    def mask_for(self, name: str, features: Tensor) -> Tensor | None:
        """Which positions of ``features``, an input inside the layer ``name``, count."""
        args, kwargs = self.rest[name]
        others = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() == 3)
        if any(value.data_ptr() == features.data_ptr() and value.shape == features.shape for value in others):
            return self.encoded  # cross-attention reads what the encoder gave
        return self.mask


def counted(name: str, features: Tensor, mask: Tensor | None) -> Tensor:
    """``features`` ``[..., in]`` as ``[positions, in]`` without what ``mask`` ``[rows, positions]`` leaves out."""
    flat = features.reshape(-1, features.shape[-1])
    if mask is None or features.shape[:-1] == mask.shape[:1]:  # one position of each sample
        return flat
    if len(flat) != mask.numel() or (features.dim() > 2 and features.shape[:2] != mask.shape):
        raise MismatchError(
            f"{name}: mask {list(mask.shape)} for an input of {list(features.shape)}; "
            "pass an attention_mask of one number a position."
        )
    return flat[mask.flatten()]


class Stop(Exception):
    """Ends a forward pass when all that is needed has been seen."""


def capture(model: Any, layers: Mapping[str, nn.Module], batches: Sequence[Mapping[str, Any]]) -> list[Call]:
    """How each of ``layers``, a stack, is called for each batch. Only the first one runs: the others are told what it put out.

    Where that is a tensor like the one it read, and nothing else that layers hand on, the first one need not run either, from
    the second batch on.

    Raises:
        RecipeError: a layer is never called, or the batches hold nothing but padding.
        MismatchError: a layer runs twice in one pass, or a mask cannot tell padding.
    """
    decoder = _encoder_modules(model).isdisjoint(id(layer) for layer in layers.values()) and model.config.is_encoder_decoder
    calls: list[Call] = []
    first, alike = next(iter(layers)), False
    for index, batch in enumerate(batches):
        inputs = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        mask = _mask(inputs, "attention_mask")
        own = _decoder_mask(inputs) if decoder else mask
        where = f"calibration batch {index}"
        with _recording(layers, runs=not alike) as (recorded, output), suppress(Stop), explained(model, inputs, where):
            model(**inputs)
        if absent := [name for name in layers if name not in recorded]:
            raise RecipeError(f"{absent[0]}: the calibration never reaches it; put it in exclude_modules.")
        hidden = recorded[first][0]
        alike = alike or (isinstance(output[0], Tensor) and output[0].shape == hidden.shape)
        rest = {name: (args, kwargs) for name, (_, args, kwargs) in recorded.items()}
        calls.append(Call(_own(hidden, inputs), rest, own, mask))
    if all(call.mask is not None and not bool(call.mask.any()) for call in calls):
        raise RecipeError("calibration: nothing but padding in the attention_mask of every batch; pass some text.")
    return calls


def _own(hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """``hidden``, which will be written to, or a copy where it is what the caller passed in."""
    where = hidden.untyped_storage().data_ptr()
    given = any(isinstance(value, Tensor) and value.untyped_storage().data_ptr() == where for value in inputs.values())
    return hidden.clone() if given else hidden


@contextmanager
def _recording(layers: Mapping[str, nn.Module], *, runs: bool) -> Iterator[tuple[dict[str, _Recorded], list[Any]]]:
    """What each layer of a forward pass was called with, and what the first put out, if it ``runs``; stops at the last."""
    recorded: dict[str, _Recorded] = {}
    names = list(layers)
    output: list[Any] = []

    def stand_in(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if name in recorded:
                raise MismatchError(f"{name}: runs twice in one pass; layer by layer is for layers that run once.")
            recorded[name] = (hidden if name == names[0] else hidden[:0], rest, kwargs)
            if name == names[-1]:
                output.append(hidden)
                raise Stop
            if name == names[0]:
                output.append(forward(hidden, *rest, **kwargs) if runs else hidden)
            return output[0]

        return record

    before = {name: vars(layer).get("forward") for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.forward = stand_in(name, layer.forward)
    try:
        yield recorded, output
    finally:
        for name, layer in layers.items():
            del layer.forward
            if (wrapped := before[name]) is not None:
                layer.forward = wrapped


def _mask(inputs: Mapping[str, Any], key: str) -> Tensor | None:
    mask = inputs.get(key)
    if mask is None:
        return None
    if mask.dim() != 2:
        raise MismatchError(f"{key} {list(mask.shape)}: cannot tell padding; pass one number a position, [rows, positions].")
    return None if bool(mask.all()) else mask.bool()


def _decoder_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    labels = inputs.get("labels")
    if inputs.get("decoder_attention_mask") is None and labels is not None and labels.dim() == 2:
        return None if bool((labels != -100).all()) else labels != -100  # it reads the labels, one position to the right
    return _mask(inputs, "decoder_attention_mask")


def _encoder_modules(model: Any) -> set[int]:
    return {id(module) for module in model.get_encoder().modules()} if model.config.is_encoder_decoder else set()


@contextmanager
def without_cache(model: Any) -> Iterator[None]:
    """No key-value cache, whichever stack's config asks for one: layers that run twice would append to it twice."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config.use_cache) for config in configs.values() if getattr(config, "use_cache", None) is not None]
    for config, _ in before:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in before:
            config.use_cache = value
