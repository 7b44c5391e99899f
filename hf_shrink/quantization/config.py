"""The ``quantization`` section."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hf_shrink.config import Config, Listed, Names

_OF_BITSANDBYTES = {"dtype", "embeddings", "quant_type", "double_quant", "compute_dtype", "threshold"}
_OF_ONNX = {"mode", "float_graph"}
_OF_FOUR = {"quant_type", "double_quant", "compute_dtype"}
_OF_EIGHT = {"threshold"}
_OF_AUTO = {"bits", "budget", "calibration_rows"}


class BudgetConfig(Config):
    """What layers of different widths may cost together: one of the three."""

    bytes: int | None = Field(None, gt=0, description="Bytes of `model.safetensors` at most.")
    bits_per_weight: float | None = Field(
        None, gt=0, le=32, description="Bits a weight at most, scales too, as a mean over the layers that can be quantised."
    )
    max_kl: float | None = Field(
        None, gt=0, description="Mean KL of the answers from the float model's at most, in nats, on the calibration rows."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(given := [name for name in type(self).model_fields if getattr(self, name) is not None]) != 1:
            raise ValueError(f"needs one of bytes, bits_per_weight, max_kl; got {' and '.join(given) or 'none'}.")
        return self


class QuantizationConfig(Config):
    """How weights are stored: 8 or 4 bits by bitsandbytes, or just a dtype; for CPU serving, 8 bits by ONNX Runtime."""

    backend: Literal["bitsandbytes", "onnx"] = Field(
        "bitsandbytes",
        description="bitsandbytes: the model itself. onnx: a graph for CPUs in `onnx/`, made from the float model.",
    )
    bits: Literal[4, 8, 16, "auto"] = Field(
        8,
        description="8 or 4. 16: every weight in `dtype`, or the embeddings alone, no bitsandbytes. auto: 4, 8 or none for "
        "each layer by what it loses, within `budget`. onnx: 8.",
    )
    budget: BudgetConfig | None = Field(None, description="auto: what all layers may cost together.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the weights that are not quantised; null leaves it. For bits: 16 the stored precision."
    )
    embeddings: Literal["keep", "bfloat16", "int8"] = Field(
        "keep",
        description="How word, position and type embeddings lie in the file: as they are, or rounded, int8 with a scale a row. "
        "What is tied to them computes with the rounded numbers.",
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    double_quant: bool = Field(True, description="4-bit: quantise the scales as well.")
    compute_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="4-bit: precision of the product.")
    threshold: float = Field(6.0, ge=0, description="8-bit: activations above this go through float; 0 turns that off.")
    skip_modules: Names = Field((), description="Ends of module names kept in float, beside those kept for safety.")

    mode: Literal["dynamic", "static"] = Field(
        "dynamic", description="onnx: ranges of what is multiplied are found while it runs, or before, by calibration."
    )
    calibration_rows: int = Field(
        128,
        ge=1,
        le=512,
        description="onnx, static: training rows that the ranges are found on. auto: that losses are measured on. In a run "
        "fewer where they are long: 65,536 tokens together.",
    )
    float_graph: bool = Field(False, description="onnx: keep the float32 graph, `onnx/model.onnx`, as well.")

    @model_validator(mode="after")
    def _options_belong_to_the_backend(self) -> Self:
        foreign = self.model_fields_set & (_OF_ONNX if self.backend == "bitsandbytes" else _OF_BITSANDBYTES)
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored with backend: {self.backend}; remove it.")
        if self.backend == "onnx" and self.bits != 8:
            raise ValueError(f"backend: onnx stores 8 bits, got bits: {self.bits}; remove it.")
        if "calibration_rows" in self.model_fields_set and self.mode == "dynamic" and self.bits != "auto":
            where = "mode: dynamic" if self.backend == "onnx" else f"bits: {self.bits}"
            raise ValueError(f"calibration_rows would be ignored with {where}; remove it.")
        return self

    @model_validator(mode="after")
    def _options_belong_to_the_bits(self) -> Self:
        given = self.model_fields_set
        allowed = {4: _OF_FOUR, 8: _OF_EIGHT, 16: set(), "auto": _OF_FOUR | _OF_EIGHT}
        foreign = given & (_OF_FOUR | _OF_EIGHT) - allowed[self.bits]
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored with bits: {self.bits}; remove it.")
        if self.bits == 16 and self.dtype in (None, "float32") and self.embeddings == "keep":
            raise ValueError("bits: 16 needs dtype: bfloat16 or float16, or embeddings: bfloat16 or int8.")
        if self.dtype == self.embeddings == "bfloat16":
            raise ValueError("embeddings: bfloat16 would be ignored with dtype: bfloat16; remove it.")
        if self.dtype == "float16" and self.embeddings == "bfloat16":
            raise ValueError("embeddings: bfloat16 takes as many bytes as dtype: float16 and loses digits; use int8 or keep.")
        if self.bits == 16 and self.skip_modules:
            raise ValueError("skip_modules would be ignored with bits: 16; remove it.")
        if self.bits == "auto" and self.budget is None:
            raise ValueError("bits: auto needs a budget: bytes, bits_per_weight or max_kl.")
        if self.bits != "auto" and self.budget is not None:
            raise ValueError(f"budget would be ignored with bits: {self.bits}; remove it, or use bits: auto.")
        return self

    def at(self, bits: Literal[4, 8]) -> Self:
        """The same words for layers that are stored in ``bits`` bits, without those that belong to other widths."""
        words = self.model_dump(exclude_unset=True, exclude=_OF_AUTO | (_OF_EIGHT if bits == 4 else _OF_FOUR))
        return type(self)(**words | {"bits": bits})


Quantization = Annotated[
    Annotated[QuantizationConfig, Tag("entry")] | Annotated[tuple[QuantizationConfig, ...], Listed, Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "entry"),
]
"""One entry, or a list with at most one for each backend."""


def entry_for(
    backend: Literal["bitsandbytes", "onnx"], quantization: QuantizationConfig | Sequence[QuantizationConfig] | None
) -> QuantizationConfig | None:
    """The entry of ``backend``, or None where there is none."""
    entries: Sequence[Any] = [quantization] if isinstance(quantization, QuantizationConfig) else quantization or ()
    return next((entry for entry in entries if entry.backend == backend), None)


def rounds_training(quantization: QuantizationConfig | Sequence[QuantizationConfig] | None) -> QuantizationConfig | None:
    """The entry whose rounding a recovery is about: that of bitsandbytes, whose model is the artefact, else that of onnx."""
    return entry_for("bitsandbytes", quantization) or entry_for("onnx", quantization)
