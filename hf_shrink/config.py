"""The strict base of every config: one class is the Python argument, the recipe section and the saved JSON."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hf_shrink.errors import RecipeError
from hf_shrink.tables import nearest

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
            lines = [f"{cls.__name__}.{dotted(e)}: {explain(e, cls)}" for e in error.errors()]
            more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
            raise RecipeError("\n".join(lines[:3]) + more) from None


class Config(BaseModel, metaclass=_RaisesRecipeError):
    """Frozen and strict: unknown keys, wrong types, NaN and infinities are refused with a ``RecipeError`` (exit code 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def dotted(error: ErrorDetails) -> str:
    """``pruning.0.sparsity``: where in the config the error is."""
    return ".".join(str(part) for part in error["loc"])


def explain(error: ErrorDetails, config: type[BaseModel]) -> str:
    """One line: what is wrong, the value that came and, for an unknown key, the nearest known one."""
    if error["type"] == "extra_forbidden":
        known = fields_at(config, error["loc"][:-1])
        return f"unknown key {error['loc'][-1]!r}.{nearest(str(error['loc'][-1]), known)} Known: {', '.join(sorted(known))}."
    if error["type"] == "missing":
        return "missing; it has no default."
    message = error["msg"].removeprefix("Value error, ")
    came = repr(error["input"])
    return f"{message}, got {came[:60]}" if error["type"] != "value_error" else message


def fields_at(config: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the config that ``loc`` points to, looking through optionals and tuples."""
    for part in loc:
        if isinstance(part, int) or part not in config.model_fields:
            continue
        inner = _config_in(config.model_fields[part].annotation)
        if inner is None:
            return []
        config = inner
    return list(config.model_fields)


def _config_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _config_in(argument)) is not None:
            return found
    return None
