"""The ``measurement`` and ``gate`` sections."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hf_shrink.config import Config, Listed, Names


class RobustnessConfig(Config):
    """Accuracy on texts that are disturbed a little, each way by itself. A rate is a fraction of the words; 0 leaves it out."""

    rows: int = Field(256, ge=2, description="Test rows at most; which ones depends on their texts and the seed alone.")
    seed: int = Field(0, ge=0, description="Of the rows and the disturbances.")
    typos: float = Field(0.2, ge=0, le=1, description="Words with one letter swapped with the next, mistyped, doubled or lost.")
    casing: float = Field(0.5, ge=0, le=1, description="Words with small letters for capitals and capitals for small ones.")
    dropped_words: float = Field(0.1, ge=0, le=1, description="Words that are left out; one always stays.")
    swapped_words: float = Field(0.2, ge=0, le=1, description="Words that change places with a neighbour.")

    @model_validator(mode="after")
    def _something_is_disturbed(self) -> Self:
        if not self.rates:
            raise ValueError("every rate is 0, so that nothing is disturbed; set one, or robustness: false.")
        return self

    @property
    def rates(self) -> dict[str, float]:
        """The rate of each way that is asked for."""
        every = {
            "typos": self.typos,
            "casing": self.casing,
            "dropped_words": self.dropped_words,
            "swapped_words": self.swapped_words,
        }
        return {kind: rate for kind, rate in every.items() if rate}


class ExplainConfig(Config):
    """Agreement with the baseline on which words matter, by integrated gradients."""

    rows: int = Field(64, ge=2, description="The first rows of the evaluation data, at most.")
    steps: int = Field(32, ge=2, description="Points between no text and the text at which gradients are taken.")


class EnergyConfig(Config):
    """Energy and CO2 of each training (teacher, student, recovered), by codecarbon, from what the whole machine takes."""

    country: str = Field(
        pattern=r"^[A-Z]{3}$", description="Whose electricity it runs on: three letters of ISO 3166, such as DEU, FRA or USA."
    )


class LmEvalConfig(Config):
    """Tasks of lm-eval, the harness by which language models are compared everywhere. No task may run code of its own."""

    tasks: Names = Field(min_length=1, description="Names as lm-eval knows them: of tasks, groups or tags.")
    limit: int | None = Field(None, ge=2, description="The first examples of each task, at most; null takes all.")
    folder: str | None = Field(
        None, min_length=1, description="Folder of your own tasks, in lm-eval's YAML; those that name Python are refused."
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if twice := sorted({name for name in self.tasks if self.tasks.count(name) > 1}):
            raise ValueError(f"task {twice[0]!r} stands here twice; remove one.")
        return self


class MeasurementConfig(Config):
    """How speed, memory and quality are measured."""

    batch_sizes: Annotated[tuple[int, ...], Listed] = Field(
        (1, 32), min_length=1, description="Batch sizes for latency and throughput."
    )
    length: int = Field(64, ge=2, description="Tokens a timed sequence has.")
    more_lengths: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Listed] = Field(
        (), description="Further lengths, in tokens, at which latency and throughput are taken at every batch size."
    )
    runs: int = Field(
        20,
        ge=3,
        description="Timed rounds: models take turns, each once untimed first, so that noise and cold caches hit all alike.",
    )
    threads: int | None = Field(None, ge=1, description="Threads for timing; null takes torch's own number.")
    memory: bool = Field(True, description="Measure peak memory, which starts a process for each model.")
    floor: Literal["tfidf"] | None = Field(None, description="A plain baseline in the table: TF-IDF + logistic regression.")
    robustness: bool | RobustnessConfig = Field(
        False, description="text-classification: measure accuracy on disturbed texts, too; true takes the defaults below."
    )
    explain: bool | ExplainConfig = Field(
        False,
        description="text-classification: whether models look at the same words; needs hf-shrink[explain]; true takes the "
        "defaults below.",
    )
    energy: EnergyConfig | None = Field(
        None,
        description="Measure energy and CO2 of the training; needs hf-shrink[energy]. Estimated where nothing counts them.",
    )
    lm_eval: LmEvalConfig | None = Field(
        None, description="causal-lm: scores of lm-eval's tasks for every stage, by name; needs hf-shrink[lm-eval]."
    )
    bootstrap: int = Field(2000, ge=100, description="Resamples behind each 95% interval.")

    @model_validator(mode="after")
    def _lengths_differ(self) -> Self:
        every = (self.length, *self.more_lengths)
        if twice := sorted({length for length in every if every.count(length) > 1}):
            raise ValueError(f"more_lengths: {twice[0]} tokens are timed twice; length is {self.length}. Remove one.")
        return self

    @property
    def robust(self) -> RobustnessConfig | None:
        """How robustness is measured; None where it is not."""
        return RobustnessConfig() if self.robustness is True else self.robustness or None

    @property
    def explained(self) -> ExplainConfig | None:
        """How attributions are compared; None where they are not."""
        return ExplainConfig() if self.explain is True else self.explain or None


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
