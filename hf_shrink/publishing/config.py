"""The ``publishing`` section."""

from typing import Self

from pydantic import Field, model_validator

from hf_shrink.config import Config, Names


class PublishingConfig(Config):
    """What the model card says beyond the numbers, and where the result goes. Nothing is guessed or sent unasked."""

    model_name: str | None = Field(None, min_length=1, description="Title of the card; null takes the name of output_dir.")
    license: str | None = Field(None, description="Licence id, as the base model's licence allows, e.g. apache-2.0.")
    language: Names = Field((), description="ISO codes of the languages, e.g. [en].")
    base_model: str | None = Field(None, description="Hub id of the base model; null takes `model` where it came from the Hub.")
    tags: Names = Field((), description="Further tags.")
    push_to: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$",
        description="OWNER/NAME on the Hub, published at the end of the run; asked for rights at its start.",
    )
    public: bool = Field(False, description="push_to: make a new repository public, or publish into a public one.")
    create_pr: bool = Field(False, description="push_to: open a pull request; main stays as it is.")
    revision: str | None = Field(None, min_length=1, description="push_to: branch, made where it is missing; null is main.")
    tag: str | None = Field(None, min_length=1, description="push_to: name for the commit.")

    @model_validator(mode="after")
    def _destination_fits(self) -> Self:
        given = [name for name in ("public", "create_pr", "revision", "tag") if getattr(self, name)]
        if given and self.push_to is None:
            raise ValueError(f"{given[0]} would be ignored: there is no push_to. Add it, or remove {given[0]}.")
        if self.create_pr and (self.revision or self.tag):
            raise ValueError(
                "create_pr opens a pull request against main, which is tagged when merged; remove revision and tag."
            )
        return self
