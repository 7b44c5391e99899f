"""The value of ``quantization_config``: what is to be done while a model is loaded, or what a stored one looks like.

In ``config.json`` it has ``quant_method: hf_shrink``, and stands there only where a stock config cannot say the shapes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.entries import fit_for_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.stock_options import THRESHOLDS, as_stored, is_threshold
from hf_shrink.tables import nearest

C = TypeVar("C", PruningConfig, QuantizationConfig)

METHOD = "hf_shrink"
_LARGEST = 2**24
"""Features: larger than any width, small enough that two of them can be multiplied."""
FORMAT = 1
EMBEDDINGS = ("bfloat16", "int8")

Shapes = Mapping[str, tuple[int, int]]
"""Module path below the base model -> ``(in_features, out_features)``."""


class ShrinkConfig(QuantizationConfigMixin):
    """What to do with a float model while it is loaded, and what a stored model looks like before its weights are read.

    ``from_pretrained(any_float_model, quantization_config=ShrinkConfig(pruning=..., quantization=...))`` gives what
    ``quantize(prune(model, ...), ...)`` makes of the loaded model, without ever holding that: weights are read one at a time.
    Then ``model.config`` describes what came out, in the other words, or in stock ones where those suffice.

    Args:
        pruning: one entry or several, as ``PruningConfig`` or dict; criteria that look at weights alone (magnitude,
            magnitude_l2, random).
        quantization: a ``QuantizationConfig`` or dict.
        shapes: projections that are not as wide as the rest of the config says: path below the base model ->
            ``(in_features, out_features)``. Below the base model, so that the folder also opens without its head.
        head_dim: features of an attention head, where they are not hidden width by number of heads.
        bitsandbytes: the ``BitsAndBytesConfig`` of a model that is quantised as well, as a dict. It is nested because
            transformers would take ``load_in_8bit`` at the top level for a plain bitsandbytes checkpoint. For weights that
            are still in float the same as ``quantization``.
        embeddings: ``bfloat16`` or ``int8``, where word, position and type embeddings lie so in the file; to round
            them, ask by ``quantization``.
        eight_bits: where ``bitsandbytes`` says 4 bits and some layers have 8: their ``layers``, as paths below the base model,
            and their ``threshold``.
        format_version: of this record.

    Raises:
        RecipeError: unknown keys, a newer format, or values that no model can have.
    """

    def __init__(
        self,
        shapes: Mapping[str, Any] | None = None,
        bitsandbytes: Mapping[str, Any] | None = None,
        head_dim: int | None = None,
        format_version: int = FORMAT,
        quant_method: str = METHOD,
        pruning: PruningConfig | Mapping[str, Any] | Sequence[PruningConfig | Mapping[str, Any]] = (),
        quantization: QuantizationConfig | Mapping[str, Any] | None = None,
        eight_bits: Mapping[str, Any] | None = None,
        embeddings: str | None = None,
        **unknown: Any,
    ) -> None:
        unknown.pop("transformers_version", None)  # config.json may bring it along
        if unknown:
            name = min(unknown)
            raise RecipeError(f"ShrinkConfig: unknown key {name!r:.60}.{nearest(name, _KNOWN)} Known: {', '.join(_KNOWN)}.")
        if quant_method != METHOD:
            raise RecipeError(f"ShrinkConfig: quant_method {quant_method!r} is another library's; this one is {METHOD!r}.")
        if format_version != FORMAT:
            raise RecipeError(
                f"ShrinkConfig: format_version {format_version!r}, this hf_shrink reads {FORMAT}. Try: pip install -U hf-shrink"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format_version = FORMAT
        if not isinstance(shapes, Mapping | None):
            raise RecipeError(f"ShrinkConfig: shapes must be path -> [in, out]; got {shapes!r:.60}.")
        self.shapes = {path: _shape(path, shape) for path, shape in (shapes or {}).items()}
        if head_dim is not None and (type(head_dim) is not int or not 0 < head_dim <= _LARGEST):
            raise RecipeError(f"ShrinkConfig: head_dim must be a whole number above 0; got {head_dim!r:.60}.")
        self.head_dim = head_dim
        if embeddings not in (None, *EMBEDDINGS):
            raise RecipeError(f"ShrinkConfig: embeddings {embeddings!r:.60}; allowed: {', '.join(EMBEDDINGS)}.")
        self.embeddings = embeddings
        self.bitsandbytes = None if bitsandbytes is None else as_stored(bitsandbytes, "ShrinkConfig: bitsandbytes")
        self.eight_bits = None if eight_bits is None else _eight_bits(eight_bits, self.bitsandbytes)
        self.quantization = None if quantization is None else _config(QuantizationConfig, quantization, "quantization")
        if self.quantization is not None and self.quantization.backend == "onnx":
            raise RecipeError(
                "ShrinkConfig: quantization: backend: onnx makes files, not a model in memory.\n"
                "Load the model in float, then call export_onnx."
            )
        if self.quantization is not None and self.quantization.bits == "auto":
            raise RecipeError(
                "ShrinkConfig: quantization: bits: auto measures the whole model on data, which loading has not.\n"
                "Load the model in float, then call quantize(model, config, calibration)."
            )
        self.pruning = _entries(pruning, self.quantization)
        if self.quantization is not None and self.bitsandbytes is not None:
            raise RecipeError("ShrinkConfig: quantization and bitsandbytes both say how weights are stored; keep quantization.")

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Reads what ``to_dict`` gave; takes no other keywords."""
        if not isinstance(config_dict, Mapping) or not all(isinstance(name, str) for name in config_dict):
            raise RecipeError(f"ShrinkConfig: must be a dict; got {config_dict!r:.60}.")
        if kwargs:
            raise RecipeError(f"ShrinkConfig: {min(kwargs)} is no option of it.")
        config = cls(**config_dict)
        return (config, {}) if return_unused_kwargs else config

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict, which transformers takes it for where a model's own config is passed to ``from_pretrained``."""
        return getattr(self, name, default)

    @property
    def is_asked_for(self) -> bool:
        """Whether something is to be done while loading, beyond building what is stored."""
        return bool(self.pruning) or self.quantization is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for and nothing is on record: not the same as no config at all, which transformers obeys."""
        record = (self.shapes, self.head_dim, self.bitsandbytes, self.embeddings, self.eight_bits)
        return not self.is_asked_for and not any(record)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``config.json``; what is empty is left out."""
        data: dict[str, Any] = {"quant_method": METHOD, "format_version": FORMAT}
        if self.shapes:
            data["shapes"] = {path: list(shape) for path, shape in self.shapes.items()}
        if self.head_dim is not None:
            data["head_dim"] = self.head_dim
        if self.bitsandbytes is not None:
            data["bitsandbytes"] = copy.deepcopy(self.bitsandbytes)
        if self.embeddings is not None:
            data["embeddings"] = self.embeddings
        if self.eight_bits is not None:
            data["eight_bits"] = copy.deepcopy(self.eight_bits)
        if self.pruning:
            data["pruning"] = [entry.model_dump(mode="json", exclude_unset=True) for entry in self.pruning]
        if self.quantization is not None:
            data["quantization"] = self.quantization.model_dump(mode="json", exclude_unset=True)
        return data


def refuse_embeddings(kind: str) -> None:
    """A RecipeError for ``embeddings`` in an argument, where it would tell of a file and change nothing."""
    raise RecipeError(
        f"ShrinkConfig: embeddings {kind!r} says how a stored folder lies, and this one does not; nothing would be rounded.\n"
        f"Ask for it: quantization=QuantizationConfig(bits=16, embeddings={kind!r})."
    )


_KNOWN = ("pruning", "quantization", "shapes", "bitsandbytes", "eight_bits", "embeddings", "head_dim", "format_version")


def _eight_bits(given: Any, four: Mapping[str, Any] | None) -> dict[str, Any]:
    """Checked, as a dict."""
    if not isinstance(given, Mapping) or given.keys() != {"layers", "threshold"}:
        raise RecipeError(f"ShrinkConfig: eight_bits must hold layers and threshold; got {given!r:.60}.")
    layers, threshold = given["layers"], given["threshold"]
    if not isinstance(layers, list | tuple) or not layers or {*map(type, layers)} != {str}:
        raise RecipeError(f"ShrinkConfig: eight_bits.layers must be names, one or more; got {layers!r:.60}.")
    if not is_threshold(threshold):
        raise RecipeError(f"ShrinkConfig: eight_bits.threshold {threshold!r:.60}; allowed: {THRESHOLDS}.")
    if not (four or {}).get("load_in_4bit"):
        raise RecipeError("ShrinkConfig: eight_bits stands beside bitsandbytes with load_in_4bit, and there is none.")
    return {"layers": list(layers), "threshold": threshold}


def _entries(given: Any, quantization: QuantizationConfig | None) -> tuple[PruningConfig, ...]:
    several = [given] if isinstance(given, PruningConfig | Mapping) else given
    if not isinstance(several, list | tuple):
        raise RecipeError(f"ShrinkConfig: pruning must be a PruningConfig or a list of them; got {given!r:.60}.")
    entries = tuple(_config(PruningConfig, entry, "pruning") for entry in several)
    if entries:
        from hf_shrink.loading.narrowing import check_without_data  # here, because transformers may be half imported

        check_without_data(entries)
    return fit_for_bits(entries, None if quantization is None else quantization.bits)


def _config(kind: type[C], given: Any, key: str) -> C:
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise RecipeError(f"ShrinkConfig: {key} must be a {kind.__name__} or a dict of its keys; got {given!r:.60}.")
    return kind(**given)


def _shape(path: str, shape: Any) -> tuple[int, int]:
    if (
        isinstance(shape, list | tuple)
        and len(shape) == 2
        and all(type(size) is int and 0 < size <= _LARGEST for size in shape)
    ):
        return shape[0], shape[1]
    raise RecipeError(f"ShrinkConfig: shapes[{path!r}] must be two whole numbers above 0, in and out; got {shape!r}.")
