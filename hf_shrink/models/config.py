"""The ``student`` and ``teacher`` sections."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hf_shrink.config import Config, Listed, Names
from hf_shrink.tables import nearest

DType = Literal["float32", "bfloat16", "float16"]
Layers = int | Annotated[tuple[int, ...], Listed]

SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"),
    *("num_decoder_layers", "embedding_size", "max_position_embeddings"),
)
"""What a student from scratch may have another number of."""


class StudentConfig(Config):
    """How the student starts."""

    start: Literal["model", "teacher", "scratch"] = Field(
        "model",
        description="Weights the student starts from: the recipe's `model`, or the (fine-tuned) teacher. scratch: random ones; "
        "`model` gives tokenizer and kind.",
    )
    config: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description=f"Sizes of a student from scratch where they differ from those of `model`: {', '.join(SIZES)}."
    )
    layers: Layers | None = Field(
        None,
        description="Layer-drop: how many layers to keep, or their indices; null keeps all.",
    )
    layer_choice: Literal["uniform", "first", "last", "alternate"] = Field(
        "uniform",
        description="Which layers a number means. uniform: evenly spaced, first and last in. alternate: every second (third, "
        "...) from layer 0.",
    )
    reconstruct: bool = Field(
        False,
        description="Layer-drop: fit each layer that stays, by least squares on the first training rows, so that it stands for "
        "those up to the next one.",
    )

    @model_validator(mode="after")
    def _sizes_belong_to_scratch(self) -> Self:
        if self.config and self.start != "scratch":
            raise ValueError(f"config would be ignored: a student from the {self.start} has its sizes; write start: scratch.")
        if self.layers is not None and self.start == "scratch":
            raise ValueError("layers would choose among random layers; write config: {num_hidden_layers: ...} instead.")
        for word in self.config:
            if word not in SIZES:
                raise ValueError(f"config: unknown size {word[:40]!r}.{nearest(word, SIZES)} Known: {', '.join(SIZES)}.")
        return self

    @model_validator(mode="after")
    def _choice_belongs_to_a_number(self) -> Self:
        if "layer_choice" in self.model_fields_set and not isinstance(self.layers, int):
            raise ValueError("layer_choice would be ignored; it says which layers a number of `layers` means.")
        if "reconstruct" in self.model_fields_set and self.layers is None:
            raise ValueError("reconstruct would be ignored; it fits the layers that a layer-drop leaves: write layers.")
        return self


class TeacherConfig(Config):
    """The model to learn from. With `training` it is fine-tuned first; without, it is used as it comes."""

    model: str = Field(min_length=1, description="A Hub id, a local folder, or package:NAME/PATH.")
    revision: str | None = Field(None, description="Commit, tag or branch on the Hub.")
    dtype: DType = Field("float32", description="Precision of the teacher's weights while it teaches.")
    bits: Literal[4, 8] | None = Field(
        None,
        description="Bits of its layers while it teaches, by bitsandbytes; the rest is in `dtype`. Null: all is.",
    )
    training: dict[str, Any] | None = Field(None, description="TrainingArguments for fine-tuning the teacher first.")
    freeze: Names = Field((), description="Modules not trained, by the end of their name, e.g. [embeddings].")

    @model_validator(mode="after")
    def _what_is_quantised_does_not_learn(self) -> Self:
        if self.bits is not None and self.training is not None:
            raise ValueError("bits: a quantised teacher does not learn; train it by a recipe of its own, then name it here.")
        return self


def _one_or_many(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "entry"


Teachers = Annotated[
    Annotated[TeacherConfig, Tag("entry")] | Annotated[tuple[TeacherConfig, ...], Field(min_length=1), Listed, Tag("list")],
    Discriminator(_one_or_many),
]
"""One section, or a list of them."""
