"""One entry of the ``pruning`` section."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hf_shrink.config import Config, Names
from hf_shrink.tables import pick

Structure = Literal["unstructured", "ffn"]


class PruningConfig(Config):
    """What is removed, how much of it, chosen how, and when."""

    structure: Structure = Field(
        "unstructured", description="unstructured: single weights (zeros, no smaller file). ffn: whole feed-forward neurons."
    )
    criterion: str = Field("magnitude", description="What scores a weight; the lowest scores go.")
    sparsity: float = Field(ge=0, lt=1, description="Fraction removed from the targets, reached at end_step.")
    schedule: str = Field("cubic", description="How sparsity rises from begin_step to end_step.")
    begin_step: int = Field(0, ge=0, description="Optimizer step before which nothing is removed.")
    end_step: int | None = Field(None, description="Optimizer step; null means the last step of training.")
    interval: int = Field(1, ge=1, description="Optimizer steps between changes of the masks; the last is at end_step.")
    target_modules: Names = Field(
        (), description="Ends of module names; empty takes all projections in the layers, never heads or embeddings."
    )
    exclude_modules: Names = Field((), description="Ends of module names that stay as they are.")
    round_to: int = Field(8, ge=1, description="ffn: kept neurons are rounded to a multiple of this; kernels like 8 or 64.")

    @field_validator("sparsity", mode="before")
    @classmethod
    def _sparsity_is_a_fraction(cls, value: Any) -> Any:
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"must be a number in [0, 1), got {value!r:.60}; 0.8 removes 80 percent.")
        return value

    @field_validator("criterion")
    @classmethod
    def _criterion_is_known(cls, name: str) -> str:
        from hf_shrink.pruning.criteria import CRITERIA  # here, so that reading the schema leaves torch unimported

        pick(CRITERIA, name, "criterion")
        return name

    @field_validator("schedule")
    @classmethod
    def _schedule_is_known(cls, name: str) -> str:
        from hf_shrink.pruning.schedules import SCHEDULES

        pick(SCHEDULES, name, "schedule")
        return name

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> Self:
        if self.end_step is not None and self.begin_step >= self.end_step:
            raise ValueError(f"schedule never fires: begin_step {self.begin_step} >= end_step {self.end_step}; raise end_step.")
        return self

    @model_validator(mode="after")
    def _rounding_is_used(self) -> Self:
        if self.structure == "unstructured" and "round_to" in self.model_fields_set:
            raise ValueError(f"round_to {self.round_to} would be ignored with structure: unstructured; remove it.")
        return self


def as_tuple(configs: PruningConfig | Sequence[PruningConfig]) -> tuple[PruningConfig, ...]:
    """One entry or several, as several."""
    return (configs,) if isinstance(configs, PruningConfig) else tuple(configs)
