"""The ``measurement`` and ``gate`` sections."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hf_shrink.config import Config, Listed


class MeasurementConfig(Config):
    """How speed, memory and quality are measured."""

    batch_sizes: Annotated[tuple[int, ...], Listed] = Field(
        (1, 32), min_length=1, description="Batch sizes for latency and throughput."
    )
    length: int = Field(64, ge=2, description="Tokens a timed sequence has.")
    runs: int = Field(20, ge=3, description="Timed rounds; models take turns within a round, so that noise hits all alike.")
    threads: int | None = Field(None, ge=1, description="Threads for timing; null takes torch's own number.")
    memory: bool = Field(True, description="Measure peak memory, which starts a process for each model.")
    floor: Literal["tfidf"] | None = Field(None, description="A plain baseline in the table: TF-IDF + logistic regression.")
    bootstrap: int = Field(2000, ge=100, description="Resamples behind each 95% interval.")


class GateConfig(Config):
    """What quality must be left of the baseline's: the teacher's, or the student's before it is shrunk. Measured values
    decide; report and message say where a 95% interval covers the bound."""

    metric: str | None = Field(None, min_length=1, description="Score that decides, e.g. macro_f1; null takes the task's main.")
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Fraction of the baseline's score to keep; where lower is better, 0.98 allows baseline / 0.98.",
    )
    max_drop: float | None = Field(
        None, ge=0, description="How much worse the score may get, in its own unit: points of accuracy, perplexity."
    )
    on_miss: Literal["stop", "roll_back"] = Field(
        "stop", description="stop ends with exit code 7; roll_back keeps the last stage that held, and does so if none did."
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.keep is None) == (self.max_drop is None):
            came = "neither" if self.keep is None else "both"
            raise ValueError(f"give one of keep (a fraction, such as 0.98) and max_drop (absolute); {came} is given.")
        return self
