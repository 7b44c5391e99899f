"""The ``quantization`` section."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hf_shrink.config import Config, Names


class QuantizationConfig(Config):
    """How weights are stored: 8 or 4 bits by bitsandbytes, or just a dtype."""

    bits: Literal[4, 8, 16] = Field(8, description="8 or 4: bitsandbytes. 16: every weight in `dtype`, no bitsandbytes.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the weights that are not quantised; null leaves it. For bits: 16 the stored precision."
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    double_quant: bool = Field(True, description="4-bit: quantise the scales as well.")
    compute_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="4-bit: precision of the product.")
    threshold: float = Field(6.0, ge=0, description="8-bit: activations above this go through float; 0 turns that off.")
    skip_modules: Names = Field((), description="Ends of module names kept in float, beside those kept for safety.")

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
