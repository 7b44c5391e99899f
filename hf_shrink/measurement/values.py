"""What a measurement is: a number with its unit and its setting, and a report that holds those of one model."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from hf_shrink.config import Config, Listed, Names
from hf_shrink.errors import RecipeError

PRECISIONS = frozenset({"float64", "float32", "bfloat16", "float16", "8-bit", "4-bit", "int8"})
"""Parts of a setting that name how the weights are stored; they may differ between models that are compared."""


def _plain(value: Any) -> Any:
    """A numpy or torch scalar as Python's own number: anything else would write YAML that cannot be read again."""
    return value.item() if hasattr(value, "item") else value


_FILES = frozenset({"*.safetensors", "*.onnx"})
"""Parts of a setting that name what the weights are stored in; these may differ, too."""

Number = Annotated[int | float, BeforeValidator(_plain)]


class Measurement(Config):
    """One number about one model."""

    name: str = Field(min_length=1, description="What was measured, e.g. latency_p50.")
    value: Number = Field(description="Finite, in `unit`.")
    unit: str = Field(description="E.g. ms, bytes, %.")
    setting: str = Field("", description="How: parts separated by commas, e.g. 'cpu, 2 threads, batch 1, 64 tokens, float32'.")
    interval: Annotated[tuple[Number, Number], Listed] | None = Field(
        None, description="95% interval around `value`, same unit."
    )
    stderr: Number | None = Field(None, ge=0, description="Standard error, where the interval was made from one; same unit.")

    @property
    def parts(self) -> tuple[str, ...]:
        """The setting, part by part."""
        return tuple(part.strip() for part in self.setting.split(",") if part.strip())

    @property
    def conditions(self) -> tuple[str, ...]:
        """The parts that two measurements must share to be compared: all but how the weights are stored."""
        return tuple(part for part in self.parts if part not in PRECISIONS | _FILES)

    def taken_at(self, **setting: object) -> bool:
        """True where each keyword is a part of the setting: ``batch=1`` is ``batch 1``, ``threads=2`` is ``2 threads``."""
        return all(
            any(part in {f"{key} {value}", f"{value} {key}", f"{value} {key.removesuffix('s')}"} for part in self.parts)
            for key, value in setting.items()
        )


class ReliabilityBin(Config):
    """Answers whose probability lies between two bounds: how sure the model is of them, and how many are right."""

    low: Number = Field(description="Above this probability.")
    high: Number = Field(description="Up to this one.")
    count: int = Field(ge=1, description="Answers in the bin.")
    confidence: Number = Field(description="Their mean probability, from 0 to 1.")
    accuracy: Number = Field(description="Fraction of them that are right.")


class Report(Config):
    """Everything measured of one model, or of one stage of a run."""

    name: str = Field(min_length=1, description="Short name, e.g. teacher.")
    title: str = Field("", description="Name for people; empty takes `name`.")
    did: Names = Field((), description="One line per thing that was done to get this model.")
    measurements: Annotated[tuple[Measurement, ...], Listed] = ()
    notes: Names = Field((), description="What a reader of the numbers should know.")
    reliability: Annotated[tuple[ReliabilityBin, ...], Listed] = Field(
        (), description="Behind the calibration error of a classifier; bins without an answer are left out."
    )

    @property
    def shown(self) -> str:
        """The title, or the name where there is none."""
        return self.title.strip() or self.name

    def find(self, name: str, **setting: object) -> Measurement | None:
        """The measurement called ``name`` at that setting, or None where it was not taken.

        Raises:
            RecipeError: several fit, e.g. at two batch sizes, and the setting does not say which.
        """
        found = [m for m in self.measurements if m.name == name and m.taken_at(**setting)]
        if len(found) > 1:
            settings = " | ".join(m.setting for m in found)
            raise RecipeError(
                f"{self.name}: {len(found)} measurements are called {name!r}; give more of the setting: {settings}"
            )
        return found[0] if found else None

    def value(self, name: str, **setting: object) -> float | None:
        """The number alone: ``report.value("latency_p50", batch=1)``; None where it was not taken. Raises as ``find``."""
        found = self.find(name, **setting)
        return None if found is None else found.value

    def to_stage(self) -> dict[str, Any]:
        """Plain data, as one entry of ``stages`` in ``hf_shrink_report.json``."""
        stage = self.model_dump(mode="json", exclude={"measurements", "notes", "reliability"})
        stage["measurements"] = [m.model_dump(mode="json", exclude_none=True) for m in self.measurements]
        bins = [each.model_dump(mode="json") for each in self.reliability]
        return stage | ({"notes": list(self.notes)} if self.notes else {}) | ({"reliability": bins} if bins else {})

    @classmethod
    def from_stage(cls, stage: dict[str, Any]) -> Self:
        """The report that ``to_stage`` wrote. Raises RecipeError where the data is something else."""
        return cls(**stage)


def plural(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
