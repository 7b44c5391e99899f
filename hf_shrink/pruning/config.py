"""One entry of the ``pruning`` section."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_serializer, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from hf_shrink.config import Config, Listed, Names
from hf_shrink.errors import RecipeError
from hf_shrink.pruning.entries import fit_for_bits as fit_for_bits
from hf_shrink.pruning.entries import placed as placed
from hf_shrink.pruning.entries import seeded as seeded
from hf_shrink.tables import Recorded, own_name, pick

Structure = Literal["unstructured", "n_of_m", "block", "heads", "ffn", "layers", "hidden", "vocabulary"]
Pair = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], Listed]

_ENTRIES = ("unstructured", "n_of_m", "block")
_UNITS = ("heads", "ffn")
_AT_ONCE = ("layers", "hidden", "vocabulary")

_SCHEDULING = {"schedule", "begin_step", "end_step", "interval", "rounds", "penalty"}

_SPECIAL: dict[str, tuple[str, ...]] = {"sparsegpt": ("unstructured", "n_of_m"), "block_influence": ("layers",)}
"""Criteria that are more than a score of weights, and the structures that they are for."""

_ONLY: dict[str, tuple[str, ...]] = {
    "threshold": ("unstructured",),
    "threshold_in": ("unstructured",),
    "min_count": ("vocabulary",),
    "pattern": ("n_of_m",),
    "block": ("block",),
    "allocation": ("unstructured", "block", "heads", "ffn"),
    "round_to": ("heads", "ffn", "hidden", "vocabulary"),
    "reconstruct": (*_UNITS, "unstructured", "n_of_m", "layers"),
    "criterion": (*_ENTRIES, *_UNITS, "layers", "hidden"),
    **dict.fromkeys(("when", "target_modules", "exclude_modules", *sorted(_SCHEDULING)), (*_ENTRIES, *_UNITS)),
}
"""Keys that only some structures read."""


class PenaltyConfig(Config):
    """A term of the training loss that drives what is going to be removed towards zero."""

    kind: Literal["l1", "group_lasso"] = Field(
        description="l1: sum of absolute weights. group_lasso: sum of the norms of what one mask entry removes, each times "
        "the root of its size (arXiv:1608.03665, eq. 1)."
    )
    weight: float = Field(gt=0, description="Factor of the term in the loss.")


class PruningConfig(Config):
    """What is removed, how much of it, chosen how, and when."""

    structure: Structure = Field(
        "unstructured",
        description="unstructured: single weights (zeros, no smaller file). n_of_m: all but n of every m neighbouring inputs. "
        "block: rectangles of weights. heads: attention heads (whole key-value groups). ffn: feed-forward neurons. "
        "layers: whole layers. hidden: the width between the layers. vocabulary: tokens that the data does not use.",
    )
    criterion: str | SkipJsonSchema[Any] = Field(
        "magnitude", description="What scores a weight or unit; the lowest scores go. In Python also a function."
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Fraction removed from the targets, reached at end_step; n_of_m has its pattern instead."
    )
    threshold: float | None = Field(
        None, gt=0, description="unstructured: instead of sparsity; weights that score below it go, in the steps of the window."
    )
    threshold_in: Literal["absolute", "std"] = Field(
        "absolute", description="Unit of threshold: the score's own, or standard deviations of the scored projection's weights."
    )
    min_count: int | None = Field(
        None, ge=1, description="vocabulary: instead of sparsity; tokens seen less often in the training texts go."
    )
    pattern: Pair | None = Field(None, description="n_of_m: [n, m], n of every m neighbouring inputs stay; [2, 4] halves.")
    block: Pair | None = Field(None, description="block: [rows, columns] of one block, outputs by inputs.")
    allocation: Literal["uniform", "global", "sensitivity"] = Field(
        "uniform",
        description="uniform: each target loses the same fraction. global: all targets of the entry compete. sensitivity: "
        "each target's fraction by what removing costs on calibration data.",
    )
    budget: Literal["parameters", "macs", "latency"] = Field(
        "parameters",
        description="allocation: sensitivity: what sparsity is a fraction of; latency is measured on this machine.",
    )
    when: Literal["during", "before"] = Field(
        "during",
        description="during: masks follow the schedule while the student trains. before: at once, by calibration on the first "
        "training rows; heads and neurons then leave before the first step, and zeros are held.",
    )
    schedule: str = Field("cubic", description="How sparsity rises from begin_step to end_step.")
    begin_step: int = Field(0, ge=0, description="Optimizer step before which nothing is removed: the warm-up.")
    end_step: int | None = Field(
        None, description="Optimizer step; null means the last step of training. What follows it is the cool-down."
    )
    interval: int = Field(1, ge=1, description="Optimizer steps between changes of the masks; the last is at end_step.")
    rounds: int = Field(4, ge=1, description="iterative: how often some are removed and the rest recovers.")
    target_modules: Names = Field(
        (), description="Ends of module names; empty takes all projections in the layers, never heads or embeddings."
    )
    exclude_modules: Names = Field((), description="Ends of module names that stay as they are.")
    round_to: int | None = Field(
        None,
        ge=1,
        description="ffn, heads, hidden, vocabulary: kept widths are multiples of this; null: 8, or 64 where 4 bits follow.",
    )
    reconstruct: bool = Field(
        False,
        description="heads, ffn: refit what reads the rest by least squares on calibration data; sparsegpt: fit the weights "
        "that stay once more, which helps most where no training follows; both need when: before. layers: fit each one that "
        "stays so that it stands for those up to the next.",
    )
    penalty: PenaltyConfig | None = Field(None, description="A sparsity-inducing term of the training loss.")
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="criterion: random draws by it; null: by the recipe's or the training's seed, or 0."
    )

    _place: str | None = PrivateAttr(None)

    @field_validator("sparsity", mode="before")
    @classmethod
    def _sparsity_is_a_fraction(cls, value: Any) -> Any:
        is_number = isinstance(value, Real) and not isinstance(value, bool)  # numpy's too
        if value is not None and not (is_number and 0 <= value < 1):
            raise ValueError(f"must be a number in [0, 1), got {value!r:.60}; 0.8 removes 80 percent.")
        return float(value) if is_number and type(value) is not int else value

    @field_validator("criterion")
    @classmethod
    def _criterion_is_known(cls, criterion: Any) -> Any:
        from hf_shrink.pruning.criteria import CRITERIA, Criterion  # here, so that reading the schema leaves torch unimported

        if isinstance(criterion, str):
            if "." in criterion:
                raise ValueError(
                    f"{criterion!r:.80} is not in the table: a recipe cannot carry a function of your own. "
                    "Pass it in Python as PruningConfig(criterion=my_function), or name a criterion of the table."
                )
            pick(dict.fromkeys([*CRITERIA, *_SPECIAL]), criterion, "criterion")
        elif not isinstance(criterion, Criterion | Recorded | Callable):
            raise ValueError(f"must be a name, a Criterion or a function (weight, stats) -> scores, got {criterion!r:.60}.")
        return criterion

    @field_serializer("criterion")
    def _by_its_name(self, criterion: Any) -> str:
        return own_name(criterion)

    @field_validator("schedule")
    @classmethod
    def _schedule_is_known(cls, name: str) -> str:
        from hf_shrink.pruning.schedules import SCHEDULES

        pick(SCHEDULES, name, "schedule")
        return name

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> Self:
        if self.end_step is not None and self.begin_step >= self.end_step:
            raise ValueError(f"schedule never fires: begin_step {self.begin_step} >= end_step {self.end_step}; raise end_step.")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        for key in sorted(self.model_fields_set & _ONLY.keys()):
            if self.structure not in _ONLY[key]:
                value = getattr(self, key)
                raise ValueError(f"{key} {value!r:.40} would be ignored with structure: {self.structure}; remove it.")
        if "rounds" in self.model_fields_set and self.schedule != "iterative":
            raise ValueError(f"rounds {self.rounds} would be ignored with schedule: {self.schedule}; set schedule: iterative.")
        if self.allocation != "uniform" and self.threshold is not None:
            raise ValueError(f"allocation {self.allocation} would be ignored with threshold; remove it.")
        if "interval" in self.model_fields_set and self.schedule in ("constant", "one_shot"):
            raise ValueError(f"interval {self.interval} would be ignored with schedule: {self.schedule}; remove it.")
        if self.budget == "latency" and not self.makes_smaller:
            raise ValueError(f"budget latency: zeros of structure: {self.structure} save no time; use budget: parameters.")
        if "schedule" in self.model_fields_set and self.threshold is not None:
            raise ValueError(f"schedule {self.schedule!r} would be ignored with threshold, which decides how much; remove it.")
        if "budget" in self.model_fields_set and self.allocation != "sensitivity":
            raise ValueError(f"budget {self.budget} would be ignored with allocation: {self.allocation}; remove it.")
        if self.when == "before" and (ignored := sorted(self.model_fields_set & _SCHEDULING)):
            raise ValueError(f"{ignored[0]} would be ignored with when: before; remove it.")
        if self.when == "before" and self.threshold is not None:
            raise ValueError("threshold with when: before leaves no sparsity to hold in the training; give sparsity.")
        if "seed" in self.model_fields_set and not self.draws:
            raise ValueError(
                f"seed would be ignored with criterion: {own_name(self.criterion)}, which draws nothing; remove it."
            )
        if "threshold_in" in self.model_fields_set and self.threshold is None:
            raise ValueError("threshold_in would be ignored without threshold; remove it.")
        return self

    @model_validator(mode="after")
    def _criterion_fits(self) -> Self:
        allowed = _SPECIAL.get(self.criterion) if isinstance(self.criterion, str) else None
        if allowed is not None and self.structure not in allowed:
            raise ValueError(f"criterion {self.criterion} is for structure: {' or '.join(allowed)}, not {self.structure}.")
        if self.criterion == "sparsegpt" and (self.allocation != "uniform" or self.threshold is not None):
            raise ValueError("criterion sparsegpt takes sparsity or pattern; remove allocation or threshold.")
        if "reconstruct" in self.model_fields_set and self.structure in _SPECIAL["sparsegpt"] and self.criterion != "sparsegpt":
            raise ValueError(f"reconstruct would be ignored with criterion {self.criterion}: single weights need sparsegpt.")
        if allowed is None and "criterion" in self.model_fields_set and not isinstance(self.criterion, Recorded):
            self._scores_what_goes()
        return self

    def _scores_what_goes(self) -> None:
        from hf_shrink.pruning.criteria import as_criterion
        from hf_shrink.pruning.sums import GIVEN

        criterion, name = as_criterion(self.criterion), own_name(self.criterion)
        if criterion.function is None and self.structure not in _UNITS:
            raise ValueError(f"criterion {name} scores heads or neurons, not structure: {self.structure}.")
        if self.structure == "hidden" and {*criterion.needs} - GIVEN:
            raise ValueError(
                f"criterion {name} needs data, and structure: hidden is cut by weights alone; use magnitude, magnitude_l2, "
                "random or, in Python, a function of your own."
            )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        """How much goes is said once: by sparsity, by the structure's own word, or by n_of_m's pattern."""
        if self.structure in ("n_of_m", "block") and getattr(self, word := _WORDS[self.structure]) is None:
            raise ValueError(
                f"structure: {self.structure} needs {word}, such as {word}: [{'2, 4' if word == 'pattern' else '16, 16'}]."
            )
        if self.pattern is not None:
            n, m = self.pattern
            if n >= m:
                raise ValueError(f"pattern [{n}, {m}] must keep fewer than all: n below m, such as [2, 4].")
            if self.sparsity is not None:
                raise ValueError(f"sparsity would be ignored: pattern [{n}, {m}] removes {1 - n / m:g}; remove sparsity.")
            return self
        given = [name for name in ("sparsity", "threshold", "min_count") if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = {"unstructured": "sparsity or threshold", "vocabulary": "sparsity or min_count"}
            words = allowed.get(self.structure, "sparsity")
            raise ValueError(f"structure: {self.structure} takes {words}, one of them; got {given or 'none'}.")
        return self

    @model_validator(mode="after")
    def _penalty_has_groups(self) -> Self:
        if self.penalty is not None and self.penalty.kind == "group_lasso" and self.structure in ("unstructured", "n_of_m"):
            raise ValueError(f"penalty: group_lasso has no groups with structure: {self.structure}; use kind: l1.")
        return self

    @property
    def draws(self) -> bool:
        """Whether scores depend on a seed."""
        needs = (*getattr(self.criterion, "needs", ()), *getattr(self.criterion, "unit_needs", ()))
        return self.structure != "vocabulary" and (self.criterion == "random" or "key" in needs)

    @property
    def fraction(self) -> float | None:
        """The fraction removed in the end; None where a threshold or a count decides."""
        return self.sparsity if self.pattern is None else 1 - self.pattern[0] / self.pattern[1]

    @property
    def is_cut_at_once(self) -> bool:
        """True for what no mask can stand for while a model trains."""
        return self.structure in _AT_ONCE

    @property
    def is_cut_after(self) -> bool:
        """True for what leaves the model when its training is over."""
        return self.structure == "vocabulary" or (self.structure in _UNITS and self.when == "during")

    @property
    def follows_training(self) -> bool:
        """True for what has masks while a student trains."""
        return self.structure not in _AT_ONCE and self.when == "during"

    def held(self) -> Self:
        """An entry that keeps the zeros of ``when: before`` in a training: they score lowest, and as many are asked for."""
        kept = {"structure", "sparsity", "pattern", "block", "allocation", "target_modules", "exclude_modules"}
        given = self.model_dump(include=kept & self.model_fields_set)
        entry = type(self)(**given, criterion="magnitude", schedule="constant")
        entry._place = self._place
        return entry

    @property
    def makes_smaller(self) -> bool:
        """True where weights leave the model; zeros stay in the file."""
        return self.structure not in _ENTRIES


_WORDS = {"n_of_m": "pattern", "block": "block"}


def as_tuple(configs: PruningConfig | Sequence[PruningConfig]) -> tuple[PruningConfig, ...]:
    """One entry or several, as several; a ``RecipeError`` for anything else."""
    entries = (configs,) if isinstance(configs, PruningConfig) else tuple(configs)
    for entry in entries:
        if not isinstance(entry, PruningConfig):
            raise RecipeError(f"pruning: got {entry!r:.40}; pass a PruningConfig or a list of them.")
    return entries
