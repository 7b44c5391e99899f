"""A stored ``quantization_config`` and one that is passed to ``from_pretrained``: what both say together."""

from typing import Any

from transformers.utils.quantization_config import BitsAndBytesConfig

from hf_shrink.errors import RecipeError
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig, refuse_embeddings
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.stock_options import as_stored

_SAME = ("quant_type", "double_quant", "compute_dtype", "threshold")


def merge(stored: Any, given: Any) -> Any:
    """The config to load with.

    Shapes come from the folder; pruning and quantising on top of them are done while loading. What is quantised already stays
    as it is: passing the options that it was made with changes nothing.

    Args:
        stored: of the folder, a dict or a config; one of the two is a ``ShrinkConfig`` or becomes one.
        given: the argument, a dict or a config.

    Raises:
        RecipeError: the two contradict each other.
    """
    one, two = _read(stored), _read(given)
    if isinstance(two, ShrinkConfig) and (two.shapes or two.head_dim is not None):
        _check_shapes(one, two)
    if isinstance(two, ShrinkConfig) and two.embeddings not in (None, getattr(one, "embeddings", None)):
        refuse_embeddings(str(two.embeddings))
    asked = _asked(two)
    pruning = two.pruning if isinstance(two, ShrinkConfig) else ()
    method = _method(one)
    if method is not None:
        _check_same(method, one, pruning, asked)
        # Ours even where stock options say it all: transformers' own quantizer would not compare them with the files.
        return ShrinkConfig(bitsandbytes=one.to_dict()) if isinstance(one, BitsAndBytesConfig) else one
    assert isinstance(one, ShrinkConfig)
    if one.embeddings is not None and (pruning or asked is not None):
        raise RecipeError(
            f"ShrinkConfig: the embeddings in this folder lie in {one.embeddings} already, which cannot be cut while loading.\n"
            "Load it without quantization_config, call dequantize(), then prune() and quantize()."
        )
    if one.is_asked_for and (pruning or asked is not None):
        raise RecipeError("config.json asks for pruning or quantization itself; change it there, or leave the argument out.")
    if not one.is_asked_for:
        if isinstance(two, ShrinkConfig):
            two = in_our_words(two)
            pruning = two.pruning
        one.pruning, one.quantization = pruning, asked
    return one


def in_our_words(given: ShrinkConfig) -> ShrinkConfig:
    """What ``given`` asks of weights that are still in float; options of bitsandbytes follow the safety plan like ours.

    Raises:
        RecipeError: something that tells of a stored folder, or an option that we do not have.
    """
    if given.bitsandbytes is None:
        return given
    if given.eight_bits is not None:
        raise RecipeError(
            "ShrinkConfig: eight_bits says how a stored folder lies, and this one is in float.\n"
            "Load it in float; quantize(model, QuantizationConfig(bits='auto', budget=...), calibration) gives both widths."
        )
    return ShrinkConfig(
        given.shapes, head_dim=given.head_dim, pruning=given.pruning, quantization=from_bitsandbytes(given.bitsandbytes)
    )


def concerns(stored: Any, given: Any) -> bool:
    """Whether one of the two is ours."""
    return any(isinstance(config, ShrinkConfig) or _quant_method(config) == METHOD for config in (stored, given))


def _quant_method(config: Any) -> Any:
    found = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return getattr(found, "value", found)


def _read(config: Any) -> Any:
    """As an object; other libraries' stay dicts."""
    if isinstance(config, dict) and _quant_method(config) == METHOD:
        return ShrinkConfig.from_dict(config)
    if isinstance(config, dict) and _quant_method(config) in ("bitsandbytes", None):
        return BitsAndBytesConfig(**as_stored(config, "quantization_config"))  # type: ignore[no-untyped-call]
    return config


def _method(config: Any) -> str | None:
    """``bitsandbytes, 8 bits`` for weights that are quantised; None for shapes alone."""
    options: Any = config.bitsandbytes if isinstance(config, ShrinkConfig) else config
    if options is None:
        return None
    if isinstance(options, BitsAndBytesConfig):
        options = options.to_dict()
    if not isinstance(options, dict) or not (options.get("load_in_8bit") or options.get("load_in_4bit")):
        return str(_quant_method(options))
    if isinstance(config, ShrinkConfig) and config.eight_bits is not None:
        return "bitsandbytes, 4 and 8 bits"
    return f"bitsandbytes, {8 if options.get('load_in_8bit') else 4} bits"


def _asked(config: Any) -> QuantizationConfig | None:
    """What an argument asks for, in our words."""
    if isinstance(config, ShrinkConfig):
        return config.quantization if config.bitsandbytes is None else from_bitsandbytes(config.bitsandbytes)
    if isinstance(config, BitsAndBytesConfig):
        return from_bitsandbytes(config.to_dict())
    raise RecipeError(
        f"quantization_config: {_quant_method(config)!r} cannot be applied to what hf_shrink stored; "
        "pass ShrinkConfig(quantization=QuantizationConfig(...))."
    )


def from_bitsandbytes(options: dict[str, Any]) -> QuantizationConfig:
    """The same in our words, for weights that are still in float.

    Raises:
        RecipeError: an option that they do not have.
    """
    for name, usual in (
        ("bnb_4bit_quant_storage", "uint8"),
        ("llm_int8_has_fp16_weight", False),
        ("llm_int8_enable_fp32_cpu_offload", False),
    ):
        if (value := options.get(name, usual)) != usual:
            raise RecipeError(f"quantization_config: {name} {value!r} is not known here; leave it out.")
    skip = tuple(options.get("llm_int8_skip_modules") or ())
    words: dict[str, Any] = {"skip_modules": skip} if skip else {}
    if options.get("load_in_8bit"):
        return QuantizationConfig(bits=8, threshold=options.get("llm_int8_threshold", 6.0), **words)
    return QuantizationConfig(
        bits=4,
        quant_type=options.get("bnb_4bit_quant_type", "fp4"),
        double_quant=options.get("bnb_4bit_use_double_quant", False),
        compute_dtype=str(options.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch."),
        **words,
    )


def _check_shapes(stored: Any, given: ShrinkConfig) -> None:
    if not isinstance(stored, ShrinkConfig) or (given.shapes, given.head_dim) != (stored.shapes, stored.head_dim):
        raise RecipeError("ShrinkConfig: shapes and head_dim are read from the folder, which says others; leave them out.")


def _check_same(method: str, stored: Any, pruning: Any, asked: QuantizationConfig | None) -> None:
    if pruning:
        raise RecipeError(
            f"ShrinkConfig: pruning: the model is quantised already ({method}); prune its float weights, then quantise."
        )
    if asked is None:
        return
    options = stored.bitsandbytes if isinstance(stored, ShrinkConfig) else stored
    if isinstance(options, BitsAndBytesConfig):
        options = options.to_dict()
    mixed = isinstance(stored, ShrinkConfig) and stored.eight_bits is not None
    if mixed or not isinstance(options, dict) or not (options.get("load_in_8bit") or options.get("load_in_4bit")):
        differ = method
    else:
        known = from_bitsandbytes({**options, "llm_int8_skip_modules": None})
        read = ["bits", *(("threshold",) if known.bits == 8 else _SAME[:3])]
        different = [name for name in read if getattr(known, name) != getattr(asked, name)]
        lies = (stored.embeddings if isinstance(stored, ShrinkConfig) else None) or "keep"
        if not different and asked.dtype is None and asked.embeddings in ("keep", lies):
            return
        name = different[0] if different else "dtype" if asked.dtype is not None else "embeddings"
        value = lies if name == "embeddings" else getattr(known, name)
        differ = f"{method}; {name} {value!r}, not {getattr(asked, name)!r}"
    raise RecipeError(
        f"ShrinkConfig: quantization: the model is quantised already ({differ}); twice would lose more and save nothing.\n"
        "Load it without quantization_config, or start from the model's float weights."
    )
