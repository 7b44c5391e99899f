"""The strict base of every config: one class is the Python argument, the recipe section and the saved JSON."""

from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from hf_shrink.errors import RecipeError
from hf_shrink.explain import dotted, problems

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""A tuple of strings that also takes a YAML list."""

Listed = BeforeValidator(_as_tuple)
"""Lets a strict tuple field take a YAML list: ``Annotated[tuple[X, ...], Listed]``."""


class _RaisesRecipeError(ModelMetaclass):
    """Building a config in Python raises RecipeError; inside a recipe pydantic still collects every problem."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            found = problems(error, cast("type[BaseModel]", cls))
            lines = [f"{dotted((cls.__name__, *path))}: {message}" for path, message in found]
            more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
            raise RecipeError("\n".join(lines[:3]) + more) from None


class Config(BaseModel, metaclass=_RaisesRecipeError):
    """Frozen and strict: unknown keys, wrong types, NaN and infinities are refused with a ``RecipeError`` (exit code 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def as_given(value: Any, kind: type[C], where: str) -> C:
    """``value``, which a user passed as ``where``; a RecipeError where it is no ``kind``, such as a mapping of its words."""
    if isinstance(value, kind):
        return value
    raise RecipeError(f"{where}: got {value!r:.60}; pass {kind.__name__}(...).")
