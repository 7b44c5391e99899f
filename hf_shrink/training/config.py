"""The ``optimization`` section: what TrainingArguments have no word for."""

from pydantic import Field

from hf_shrink.config import Config, Names


class OptimizationConfig(Config):
    """Beside `training`, for the student."""

    freeze: Names = Field((), description="Modules not trained, by the end of their name, e.g. [embeddings].")
