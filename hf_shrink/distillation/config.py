"""The ``distillation`` section."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from hf_shrink.config import Config, Listed
from hf_shrink.tables import own_name

LayerPair = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], Listed]
LayerMap = Literal["uniform", "last"] | Annotated[tuple[LayerPair, ...], Listed]


class LossTerm(Config):
    """One distillation loss with its weight."""

    loss: str | SkipJsonSchema[Any] = Field("forward_kl", description="Name of the loss. In Python also a function.")
    temperature: float = Field(1.0, gt=0, description="Softens both distributions; 1 leaves them as they are.")
    weight: float = Field(1.0, ge=0, description="Factor of this term in the sum.")
    beta: float | None = Field(
        None,
        ge=0,
        description="`jsd`: the teacher's part of the mix, in (0, 1), default 0.5. "
        "`decoupled_kd`: weight of the other classes, default 8.",
    )
    layers: LayerMap | None = Field(
        None,
        description="Layers to compare: `uniform`, `last`, or pairs [student, teacher] counted from 0. "
        "Null: `last` for relations, `uniform` for the other losses on layers.",
    )
    temperature_end: float | None = Field(None, gt=0, description="Temperature of the last step, reached in a straight line.")
    weight_end: float | None = Field(None, ge=0, description="Weight of the last step, reached in a straight line.")

    @field_validator("loss")
    @classmethod
    def _is_known(cls, loss: Any) -> Any:
        from hf_shrink.distillation.own_losses import as_loss  # here, so that reading the schema leaves torch unimported

        as_loss(loss)
        return loss

    @field_serializer("loss")
    def _by_its_name(self, loss: Any) -> str:
        return own_name(loss)

    @property
    def name(self) -> str:
        """What logs call the term: the loss's name, or a function's without its module."""
        return own_name(self.loss).rsplit(".", 1)[-1]

    @model_validator(mode="after")
    def _has_only_what_it_takes(self) -> Self:
        from hf_shrink.distillation.own_losses import as_loss

        loss = as_loss(self.loss)
        soft = self.temperature != 1 or self.temperature_end is not None
        given = {"temperature": soft, "beta": self.beta is not None, "layers": self.layers is not None}
        taken = loss.takes | ({"layers"} if loss.layers else set())
        for word in (word for word, is_given in given.items() if is_given and word not in taken):
            raise ValueError(f"{word}: would be ignored, {own_name(self.loss)} has none; remove it.")
        if self.loss == "jsd" and self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(f"beta: must be a number in (0, 1) for jsd, got {self.beta:g}")
        if self.layers == ():
            raise ValueError("layers: an empty list compares nothing; remove it, or give pairs [student, teacher].")
        return self


class ProgressiveConfig(Config):
    """Layers learn one after the other from the losses on layers alone; then the whole student learns from everything."""

    order: Literal["bottom_up", "layer_by_layer"] = Field(
        "bottom_up",
        description="bottom_up: in each stage all layers so far learn. layer_by_layer: only the next one, those below rest "
        "(arXiv:2004.02984).",
    )
    steps_per_layer: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Listed] = Field(
        description="Optimizer steps of a stage; a list has one number for each layer of the student that is compared."
    )


class OnPolicyConfig(Config):
    """A causal language model learns from what it says itself (arXiv:2306.13649); `jsd` is the paper's loss."""

    mix: float = Field(
        gt=0,
        le=1,
        description="Part of the batches, drawn by seed and step, whose rows go on from their prompts in the student's own "
        "words. There the task has no loss.",
    )
    temperature: float = Field(1.0, gt=0, description="Of the sampling, not of the losses.")
    max_new_tokens: int = Field(64, ge=1, description="Tokens of a sample, fewer where the student ends the text.")
    prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of a row that are the prompt; null: half of it. In chats of which only the assistant's part is "
        "learnt, all before its last turn, and this is not read.",
    )


class DistillationConfig(Config):
    """The training loss is (1 - alpha) * task + alpha * (sum of weight * term)."""

    alpha: float = Field(0.5, ge=0, le=1, description="Weight of distillation; the task loss gets 1 - alpha.")
    alpha_end: float | None = Field(None, ge=0, le=1, description="Alpha of the last step, reached in a straight line.")
    losses: Annotated[tuple[LossTerm, ...], Listed] = Field(min_length=1, description="The terms of the sum.")
    combine: Literal["mean", "confidence"] | None = Field(
        None,
        description="Several teachers: `mean` of their probabilities, which null means too, or by `confidence`, where who is "
        "sure counts more.",
    )
    progressive: ProgressiveConfig | None = None
    on_policy: OnPolicyConfig | None = None

    @property
    def crosses(self) -> bool:
        """Whether the teacher reads the texts in tokens of its own."""
        from hf_shrink.distillation.own_losses import as_loss

        return any(as_loss(term.loss).crosses for term in self.losses)

    @model_validator(mode="after")
    def _tokenizers_are_one_or_two(self) -> Self:
        from hf_shrink.distillation.own_losses import as_loss

        others = [term.name for term in self.losses if not as_loss(term.loss).crosses]
        if self.crosses and others:
            raise ValueError(
                f"losses: {others[0]} compares the same tokens in both models, which uld is there to do without; keep one."
            )
        if self.crosses and self.on_policy is not None:
            raise ValueError("on_policy: a sample has no row in the teacher's tokens, which uld reads; remove it, or use jsd.")
        return self

    @model_validator(mode="after")
    def _samples_have_no_right_answer(self) -> Self:
        from hf_shrink.distillation.own_losses import as_loss

        for term in self.losses if self.on_policy is not None else ():
            if "labels" in as_loss(term.loss).takes:
                raise ValueError(f"on_policy: {term.name} reads the right word, which a sample has not; use jsd.")
        if self.on_policy is not None and self.alpha == 0 and self.alpha_end is None:
            raise ValueError("on_policy: nothing is learnt from the teacher at alpha 0; raise alpha, or remove it.")
        return self

    @model_validator(mode="after")
    def _stages_have_something_to_learn(self) -> Self:
        from hf_shrink.distillation.own_losses import as_loss

        if self.progressive is not None and not any(as_loss(term.loss).layers for term in self.losses):
            raise ValueError("progressive: no loss compares layers, so no layer would learn; add hidden_mse, or remove it.")
        if self.progressive is not None and self.alpha == 0:
            raise ValueError("progressive: nothing is learnt from the teacher at alpha 0; raise alpha, or remove it.")
        return self


class CacheConfig(Config):
    """What the teacher says about each training row, written once; the student then learns from the files alone."""

    folder: str = Field(
        min_length=1, description="Folder of the files, not in output_dir; recipes with the same teacher and data may share it."
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="Precision of the numbers; float16 halves the files and rounds to 3 digits."
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="causal-lm: words kept at each position, 64 where null; all others share one probability. "
        "Other tasks keep every output.",
    )
