"""The ``data`` section."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hf_shrink.config import Config


class DataConfig(Config):
    """Which texts, which columns, which splits, how long."""

    dataset: str = Field(
        min_length=1,
        description="A Hub id, a local file or folder (csv, tsv, json, jsonl, parquet, txt), or package:NAME.",
    )
    subset: str | None = Field(None, description="Configuration of the data set on the Hub.")
    revision: str | None = Field(None, description="Commit, tag or branch on the Hub; a commit makes the run repeatable.")
    text_column: str = Field("text", description="Column with the text.")
    text_pair_column: str | None = Field(None, description="Column with the second text, for pairs (not causal-lm).")
    label_column: str = Field(
        "label",
        description="Column with the label. text-classification: a class index or its name; multi-label-classification: a list "
        "of them; text-regression: a number.",
    )
    similarity_column: str | None = Field(
        None,
        description="sentence-embedding with text_pair_column: column with a number, higher for pairs more alike.",
    )
    target_column: str = Field("target", description="seq2seq: column with the text to be written.")
    prefix: str = Field("", description="seq2seq: stands before each text, as in 'summarize: '.")
    max_target_length: int = Field(64, ge=2, description="seq2seq: tokens of a target at most; a judged text is no longer.")
    tokens_column: str = Field("tokens", description="token-classification: column with lists of words.")
    tags_column: str = Field("tags", description="token-classification: column with a tag for each word, by name or number.")
    messages_column: str | None = Field(
        None, description="causal-lm: instead of text_column; column with chats, lists of {role, content}."
    )
    loss_on: Literal["all", "assistant"] = Field(
        "all", description="causal-lm with messages_column: tokens to learn; assistant needs a chat template that marks them."
    )
    packing: bool = Field(
        True,
        description="causal-lm, masked-lm: texts joined by the end-of-text token, cut into blocks; false cuts each text off.",
    )
    mask_probability: float = Field(
        0.15, gt=0.0, lt=1.0, description="masked-lm: share of the tokens that are to be told, drawn anew in each epoch."
    )
    question_column: str = Field("question", description="question-answering: column with the question.")
    context_column: str = Field("context", description="question-answering: column with the text that holds the answer.")
    answers_column: str = Field(
        "answers", description="question-answering: column with {text: [...], answer_start: [...]}, in characters, as SQuAD."
    )
    doc_stride: int = Field(
        32, ge=0, description="question-answering: tokens that two windows of a long context share, when it is cut."
    )
    train_split: str = Field("train", description="Split to train on.")
    validation_split: str | None = Field(
        "validation", description="Split for evaluation during training; null cuts a tenth off the training split."
    )
    test_split: str | None = Field("test", description="Split for the reported numbers; null reports on the validation split.")
    train_samples: int | None = Field(None, ge=1, description="Take at most this many rows, drawn with `seed`; null takes all.")
    validation_samples: int | None = Field(None, ge=1, description="As train_samples, for the validation split.")
    test_samples: int | None = Field(None, ge=1, description="As train_samples, for the test split.")
    max_length: int = Field(
        128, ge=2, description="Tokens of a text, or of a block of packed texts, at most; special tokens included."
    )
    seed: int = Field(0, ge=0, description="Seed for drawing and cutting splits.")

    @model_validator(mode="after")
    def _training_rows_are_not_for_measuring(self) -> Self:
        for key in ("validation_split", "test_split"):
            if getattr(self, key) == self.train_split:
                raise ValueError(
                    f"{key} is the training split {self.train_split!r}: numbers from it mean nothing. Use another."
                )
        return self
