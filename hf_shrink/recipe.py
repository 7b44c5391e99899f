"""The recipe: one YAML file is one complete run, checked as a whole before anything starts."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hf_shrink.config import Config, Listed
from hf_shrink.data.config import DataConfig
from hf_shrink.distillation.config import CacheConfig, DistillationConfig
from hf_shrink.errors import RecipeError
from hf_shrink.explain import KeyPath, dotted, problems, shown
from hf_shrink.measurement.config import GateConfig, MeasurementConfig
from hf_shrink.models.config import StudentConfig, TeacherConfig, Teachers
from hf_shrink.overrides import apply
from hf_shrink.pruning.config import PruningConfig, fit_for_bits, placed, seeded
from hf_shrink.publishing.config import PublishingConfig
from hf_shrink.quantization.config import Quantization, entry_for
from hf_shrink.recipe_checks import recipe_problems
from hf_shrink.reference import markdown
from hf_shrink.starter import STARTER as STARTER
from hf_shrink.stored import RECIPE as STORED_RECIPE
from hf_shrink.stored import stored_file
from hf_shrink.tables import Recorded
from hf_shrink.tasks import TaskName
from hf_shrink.training.config import OptimizationConfig, RecoveryConfig
from hf_shrink.yaml_core import write
from hf_shrink.yaml_source import MAX_BYTES, Place, Source, decode, parse

_SHOWN = 20
_COLLECTED = 100
_OWN = ("loss", "criterion")
"""Keys whose value may be a user's function in Python."""


class Recipe(Config):
    """A whole run. Sections are named after the rooms that read them."""

    version: Literal[1] = Field(description="Version of this format.")
    task: TaskName = Field(description="What the model is for.")
    model: str = Field(
        min_length=1, description="The student's starting point: a Hub id, a local folder, or package:NAME/PATH."
    )
    revision: str | None = Field(None, description="Commit, tag or branch of `model` on the Hub.")
    output_dir: str = Field(min_length=1, description="Folder of the run; the finished model lies in it.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random but the splits, whose seed is in `data`.")
    data: DataConfig
    student: StudentConfig = StudentConfig()
    teacher: Teachers | None = Field(
        None,
        description="The model to learn from. With `training` it is fine-tuned first; without, it is used as it comes. A list "
        "of trained ones teaches together.",
    )
    cache: CacheConfig | None = None
    distillation: DistillationConfig | None = None
    pruning: Annotated[tuple[PruningConfig, ...], Listed] = ()
    training: dict[str, Any] = Field(
        {},
        description="Words of transformers' TrainingArguments for the student, except what the recipe itself decides. "
        "`report_to` names trackers; without it there are none.",
    )
    optimization: OptimizationConfig = OptimizationConfig()
    quantization: Quantization | None = Field(
        None, description="How weights are stored, and what is made of them for CPUs: an entry, or a list with one a backend."
    )
    recovery: RecoveryConfig | None = None
    measurement: MeasurementConfig = MeasurementConfig()
    gate: GateConfig | None = Field(None, description="What quality must be left, or the run ends with exit code 7.")
    publishing: PublishingConfig = PublishingConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        data = self.model_dump(exclude_unset=True)
        if found := [f"{dotted(path)}: {message}" for path, message in islice(recipe_problems(data), 3)]:
            raise ValueError("\n".join(found))
        return self

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a recipe from a file of at most 256 KiB; see ``from_text``."""
        path, name = Path(path), shown(Path(path).name)
        try:
            if not path.is_file():  # a pipe or a device would block or never end
                raise RecipeError(f"{name}: {'not a regular file' if path.exists() else 'no such file'}.")
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise RecipeError(f"{name}: cannot be read: {error.strerror}.") from None
        if len(raw) > MAX_BYTES:
            raise RecipeError(f"{name}: more than {MAX_BYTES} bytes (256 KiB); a recipe is a few kilobytes.")
        return cls.from_text(decode(raw, name=name), name=name, overrides=overrides)

    @classmethod
    def from_text(cls, text: str, name: str = "recipe.yaml", overrides: Sequence[str] = ()) -> Self:
        """Read a recipe from YAML.

        Args:
            text: YAML 1.2, plain data only.
            name: what errors call the text.
            overrides: ``pruning.0.sparsity=0.3``, each value YAML in itself; ``teacher=null`` turns a section off
                that may be null.

        Raises:
            RecipeError: every problem of the text, one line each, with line and column (at most 20 are listed).
            SecurityError: the text asks for more than plain data.
        """
        source = apply(parse(text, name=name), overrides)
        if not isinstance(source.data, dict):
            kind = {list: "a list", str: "text", type(None): "empty"}.get(type(source.data), "a single value")
            raise RecipeError(
                f"{source.places[()]}: not valid YAML for a recipe: the top level is {kind}, not `key: value` lines."
            )
        found = [(place, message) for place, message in source.problems]
        found += [_placed(source, path, message) for path, message in islice(recipe_problems(source.data), _COLLECTED)]
        try:
            recipe = cls.model_validate(source.data)
        except ValidationError as error:
            # The problems between sections come without a path here, and are in the list already.
            found += [_placed(source, path, message) for path, message in problems(error, cls) if path]
        if found:
            raise RecipeError(_report(found))
        return recipe

    @classmethod
    def from_pretrained(cls, reference: str | Path, *, revision: str | None = None, overrides: Sequence[str] = ()) -> Self:
        """The recipe that made a published model.

        What was local to its author is ``local: NAME`` there; say with ``overrides`` where yours is (``data.dataset=...``).

        Args:
            reference: a folder of a run, or ``owner/name`` on the Hub.
            revision: commit, tag or branch on the Hub.
            overrides: as in ``from_text``.

        Raises:
            MismatchError: the model was not made by a recipe. ResourceError: it cannot be had. RecipeError: as ``from_text``.
        """
        return cls.from_yaml(stored_file(reference, STORED_RECIPE, revision=revision), overrides)

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that a run has written down, to compare with: functions of its maker are there by their names alone.

        Raises:
            ValueError: it is none of this version.
        """
        return cls.model_validate(_with_functions(data))

    def effective_pruning(self) -> tuple[PruningConfig, ...]:
        """The ``pruning`` entries with what follows from other sections: widths that kernels like, the seed."""
        stored = entry_for("bitsandbytes", self.quantization)
        return placed(seeded(fit_for_bits(self.pruning, None if stored is None else stored.bits), self.seed))

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """All who teach, in order; the first is the one that the report measures."""
        if self.teacher is None:
            return ()
        return (self.teacher,) if isinstance(self.teacher, TeacherConfig) else self.teacher

    def to_yaml(self) -> str:
        """What was set, as YAML; ``from_text`` of it equals this recipe."""
        return write(_plain(self.model_dump(exclude_unset=True)))

    def canonical(self) -> str:
        """Everything, defaults too, as YAML: equal for recipes that mean the same run."""
        return write(_plain(self.model_dump()))

    def digest(self) -> str:
        """SHA-256 of the whole content, in hex; the same whether a default was written out or not."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def changed_keys(self, other: "Recipe") -> list[str]:
        """Dotted keys whose values differ between this recipe and ``other``, sorted."""
        before, after = _leaves(self.model_dump(), ()), _leaves(other.model_dump(), ())
        return sorted(key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...))

    def difference(self, other: "Recipe") -> str:
        """Unified diff from this recipe to ``other``, defaults written out; empty where both mean the same."""
        lines = difflib.unified_diff(
            self.canonical().splitlines(), other.canonical().splitlines(), "before", "now", lineterm="", n=2
        )
        return "\n".join(lines)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of a recipe, with the meaning of each key."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}

    @classmethod
    def reference_markdown(cls) -> str:
        """The README's recipe reference."""
        return markdown(cls.json_schema())


def _with_functions(value: Any) -> Any:
    """``value`` with each loss or criterion that is a function's name, ``my_module.my_function``, marked as one."""
    if isinstance(value, Mapping):
        return {
            key: Recorded(inner) if key in _OWN and isinstance(inner, str) and "." in inner else _with_functions(inner)
            for key, inner in value.items()
        }
    return [_with_functions(item) for item in value] if isinstance(value, list) else value


def _placed(source: Source, path: KeyPath, message: str) -> tuple[Place, str]:
    """The problem with the place of its key, or of the nearest section around it."""
    place = next(source.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in source.places)
    return place, f"{dotted(path)}: {message}"


def _report(found: list[tuple[Place, str]]) -> str:
    lines = [f"{place}: {message}" for place, message in sorted(dict.fromkeys(found))]
    more = [f"... and at least {len(lines) - _SHOWN} more problems."] if len(lines) > _SHOWN else []
    return "\n".join(lines[:_SHOWN] + more)


def _plain(value: Any) -> Any:
    """Lists for tuples: YAML has only lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: KeyPath) -> dict[str, Any]:
    """Every plain value by its dotted key; an empty section or list counts as a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    if not pairs:
        return {dotted(path): value}
    return {key: leaf for part, inner in pairs for key, leaf in _leaves(inner, (*path, part)).items()}
