"""The ``measurement`` section."""

from typing import Annotated, Literal

from pydantic import Field

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
