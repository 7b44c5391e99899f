"""The ``quantization`` section."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hf_shrink.config import Config, Listed, Names

_OF_BITSANDBYTES = {"dtype", "quant_type", "double_quant", "compute_dtype", "threshold"}
_OF_ONNX = {"mode", "calibration_rows", "float_graph"}


class QuantizationConfig(Config):
    """How weights are stored: 8 or 4 bits by bitsandbytes, or just a dtype; for CPU serving, 8 bits by ONNX Runtime."""

    backend: Literal["bitsandbytes", "onnx"] = Field(
        "bitsandbytes",
        description="bitsandbytes: the model itself. onnx: a graph for CPUs in `onnx/`, made from the float model.",
    )
    bits: Literal[4, 8, 16] = Field(8, description="8 or 4. 16: every weight in `dtype`, no bitsandbytes. onnx: 8.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the weights that are not quantised; null leaves it. For bits: 16 the stored precision."
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    double_quant: bool = Field(True, description="4-bit: quantise the scales as well.")
    compute_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="4-bit: precision of the product.")
    threshold: float = Field(6.0, ge=0, description="8-bit: activations above this go through float; 0 turns that off.")
    skip_modules: Names = Field((), description="Ends of module names kept in float, beside those kept for safety.")

    mode: Literal["dynamic", "static"] = Field(
        "dynamic", description="onnx: ranges of what is multiplied are found while it runs, or before, by calibration."
    )
    calibration_rows: int = Field(128, ge=1, description="onnx, static: training rows that the ranges are found on.")
    float_graph: bool = Field(False, description="onnx: keep the float32 graph, `onnx/model.onnx`, as well.")

    @model_validator(mode="after")
    def _options_belong_to_the_backend(self) -> Self:
        foreign = self.model_fields_set & (_OF_ONNX if self.backend == "bitsandbytes" else _OF_BITSANDBYTES)
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored with backend: {self.backend}; remove it.")
        if self.backend == "onnx" and self.bits != 8:
            raise ValueError(f"backend: onnx stores 8 bits, got bits: {self.bits}; remove it.")
        if "calibration_rows" in self.model_fields_set and self.mode == "dynamic":
            raise ValueError("calibration_rows would be ignored with mode: dynamic; remove it.")
        return self

    @model_validator(mode="after")
    def _options_belong_to_the_bits(self) -> Self:
        given = self.model_fields_set
        four, eight = {"quant_type", "double_quant", "compute_dtype"}, {"threshold"}
        foreign = given & (four | eight) - {4: four, 8: eight, 16: set()}[self.bits]
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored with bits: {self.bits}; remove it.")
        if self.bits == 16 and (self.dtype is None or self.dtype == "float32"):
            raise ValueError("bits: 16 needs dtype: bfloat16 or float16.")
        if self.bits == 16 and self.skip_modules:
            raise ValueError("skip_modules would be ignored with bits: 16; remove it.")
        return self


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
