"""What ``quantization_config`` says in a ``config.json`` whose shapes a stock config cannot: ``quant_method: hf_shrink``."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import BitsAndBytesConfig, QuantizationConfigMixin

from hf_shrink.errors import RecipeError
from hf_shrink.tables import nearest

METHOD = "hf_shrink"
FORMAT = 1

Shapes = Mapping[str, tuple[int, int]]
"""Module path below the base model -> ``(in_features, out_features)``."""


class ShrinkConfig(QuantizationConfigMixin):
    """What a stored model looks like, so that ``from_pretrained`` can build it before it reads the weights.

    Args:
        shapes: projections that are not as wide as the rest of the config says: path below the base model ->
            ``(in_features, out_features)``. Below the base model, so that the folder also opens without its head.
        head_dim: features of an attention head, where they are not hidden width by number of heads.
        bitsandbytes: the ``BitsAndBytesConfig`` of a model that is quantised as well, as a dict. It is nested because
            transformers would take ``load_in_8bit`` at the top level for a plain bitsandbytes checkpoint.
        format_version: of this record.

    Raises:
        RecipeError: unknown keys, a newer format, or values that no model can have.
    """

    def __init__(
        self,
        shapes: Mapping[str, Any] | None = None,
        bitsandbytes: Mapping[str, Any] | None = None,
        head_dim: int | None = None,
        format_version: int = FORMAT,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        unknown.pop("transformers_version", None)  # config.json may bring it along
        if unknown:
            name, known = min(unknown), ("shapes", "bitsandbytes", "head_dim", "format_version")
            raise RecipeError(f"ShrinkConfig: unknown key {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
        if quant_method != METHOD:
            raise RecipeError(f"ShrinkConfig: quant_method {quant_method!r} is another library's; this one is {METHOD!r}.")
        if format_version != FORMAT:
            raise RecipeError(
                f"ShrinkConfig: format_version {format_version!r}, this hf_shrink reads {FORMAT}. Try: pip install -U hf-shrink"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format_version = FORMAT
        self.shapes = {path: _shape(path, shape) for path, shape in (shapes or {}).items()}
        if head_dim is not None and (type(head_dim) is not int or head_dim < 1):
            raise RecipeError(f"ShrinkConfig: head_dim must be a whole number above 0; got {head_dim!r}.")
        self.head_dim = head_dim
        self.bitsandbytes = None if bitsandbytes is None else _checked(bitsandbytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``config.json``; what is empty is left out."""
        data: dict[str, Any] = {"quant_method": METHOD, "format_version": FORMAT}
        if self.shapes:
            data["shapes"] = {path: list(shape) for path, shape in self.shapes.items()}
        if self.head_dim is not None:
            data["head_dim"] = self.head_dim
        if self.bitsandbytes is not None:
            data["bitsandbytes"] = copy.deepcopy(self.bitsandbytes)
        return data


def _shape(path: str, shape: Any) -> tuple[int, int]:
    if isinstance(shape, list | tuple) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape):
        return shape[0], shape[1]
    raise RecipeError(f"ShrinkConfig: shapes[{path!r}] must be two whole numbers above 0, in and out; got {shape!r}.")


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """transformers ignores options it does not know: a typo in ``nf4`` options would load another format."""
    known = BitsAndBytesConfig(load_in_8bit=True).to_dict().keys()  # type: ignore[no-untyped-call]
    if strange := sorted(set(options) - known):
        raise RecipeError(f"ShrinkConfig: unknown bitsandbytes option {strange[0]!r}.{nearest(strange[0], known)}")
    if bool(options.get("load_in_8bit")) == bool(options.get("load_in_4bit")):
        raise RecipeError("ShrinkConfig: bitsandbytes needs one of load_in_8bit and load_in_4bit.")
    return dict(options)
