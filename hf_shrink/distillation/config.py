"""The ``distillation`` section."""

from typing import Annotated

from pydantic import Field, field_validator

from hf_shrink.config import Config, Listed
from hf_shrink.tables import pick


class LossTerm(Config):
    """One distillation loss with its weight."""

    loss: str = Field("forward_kl", description="Name of the loss.")
    temperature: float = Field(1.0, gt=0, description="Softens both distributions; 1 leaves them as they are.")
    weight: float = Field(1.0, ge=0, description="Factor of this term in the sum.")

    @field_validator("loss")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from hf_shrink.distillation.losses import LOSSES  # here, so that reading the schema leaves torch unimported

        pick(LOSSES, name, "loss")
        return name


class DistillationConfig(Config):
    """The training loss is (1 - alpha) * task + alpha * (sum of weight * term)."""

    alpha: float = Field(0.5, ge=0, le=1, description="Weight of distillation; the task loss gets 1 - alpha.")
    losses: Annotated[tuple[LossTerm, ...], Listed] = Field(min_length=1, description="The terms of the sum.")
