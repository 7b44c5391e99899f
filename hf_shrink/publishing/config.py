"""The ``publishing`` section."""

from pydantic import Field

from hf_shrink.config import Config, Names


class PublishingConfig(Config):
    """What the model card says beyond the numbers. Nothing is guessed: what is not given is left out."""

    model_name: str | None = Field(None, min_length=1, description="Title of the card; null takes the name of output_dir.")
    license: str | None = Field(None, description="Licence id, as the base model's licence allows, e.g. apache-2.0.")
    language: Names = Field((), description="ISO codes of the languages, e.g. [en].")
    base_model: str | None = Field(None, description="Hub id of the base model, where `model` is a path or a package.")
    tags: Names = Field((), description="Further tags.")
