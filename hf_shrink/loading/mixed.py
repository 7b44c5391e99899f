"""A stored model with 4 and 8 bits side by side: transformers' own two quantizers, each for its own layers.

Imported while transformers itself is half imported (see ``register``), so only what is there by then is imported on top.
"""

from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import BitsAndBytesConfig


class MixedQuantizer:
    """What ``ShrinkQuantizer`` asks its inner quantizer, answered by the one whose layer it is.

    Args:
        four: options of the 4-bit layers; its ``llm_int8_skip_modules`` name the 8-bit ones as well.
        eight: ``layers`` (paths below the base model) and ``threshold`` of the 8-bit ones.
    """

    def __init__(self, four: BitsAndBytesConfig, eight: Mapping[str, Any]) -> None:
        self.quantization_config = four
        self._layers = tuple(eight["layers"])
        options = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=eight["threshold"])  # type: ignore[no-untyped-call]
        self.parts: tuple[Any, Any] = (
            AutoHfQuantizer.from_config(four, pre_quantized=True),
            AutoHfQuantizer.from_config(options, pre_quantized=True),
        )

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ImportError where something is missing."""
        for part in self.parts:
            part.validate_environment(*args, **kwargs)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from hf_shrink.errors import IntegrityError
        from hf_shrink.quantization.bitsandbytes import skip_names
        from hf_shrink.targets import projections

        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        eight, every = [f"{prefix}{path}" for path in self._layers], projections(model)
        if strange := [name for name in eight if name not in every]:
            raise IntegrityError(f"config.json: eight_bits names {strange[0]!r}, which {type(model).__name__} does not have.")
        self.parts[1].quantization_config.llm_int8_skip_modules = skip_names(model, eight, [n for n in every if n not in eight])
        for part in self.parts:
            part._process_model_before_weight_loading(model, **kwargs)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for part in self.parts:
            part._process_model_after_weight_loading(model, **kwargs)

    def update_dtype(self, dtype: Any) -> Any:
        """As both see it, one after the other."""
        for part in self.parts:
            dtype = part.update_dtype(dtype)
        return dtype

    def update_device_map(self, device_map: Any) -> Any:
        """As both see it, one after the other."""
        for part in self.parts:
            device_map = part.update_device_map(device_map)
        return device_map

    def adjust_max_memory(self, max_memory: Any) -> Any:
        """Room for what comes up while loading; once, not twice."""
        return self.parts[0].adjust_max_memory(max_memory)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether the parameter belongs to a layer of either."""
        return any(part.param_needs_quantization(model, param_name, **kwargs) for part in self.parts)

    def get_load_operations(self) -> dict[str, Any]:
        """One operation that collects what either stores, and hands it to the one whose layer it is."""
        return {"deserialize": lambda quantizer: deserialiser(quantizer, self.parts)}

    @property
    def serialized_names(self) -> dict[str, list[str]]:
        """Tensor names of a stored weight, in 4 bits or in 8."""
        names = (name for part in self.parts for name in part.serialized_names["weight"])
        return {"weight": list(dict.fromkeys(names))}

    @property
    def quantized_element_size(self) -> float:
        """Of the larger of the two: placing a model must not count on too little."""
        return float(max(part.quantized_element_size for part in self.parts))

    @property
    def is_compileable(self) -> bool:
        """Where both are."""
        return all(bool(part.is_compileable) for part in self.parts)


def deserialiser(quantizer: Any, parts: tuple[Any, Any]) -> Any:
    """The operation of ``MixedQuantizer.get_load_operations``; its class needs what is imported later."""
    from transformers.core_model_loading import ConversionOps

    class Deserialise(ConversionOps):
        """Stored tensors of one layer -> its weight."""

        hf_quantizer = quantizer  # what marks the step as a quantizer's, which saving leaves out

        def convert(self, input_dict: Any, model: Any = None, full_layer_name: Any = None, **more: Any) -> Any:  # type: ignore[override]
            for part in parts:
                if part.param_needs_quantization(model, full_layer_name):
                    operation = part.get_load_operations()["deserialize"](part)
                    return operation.convert(input_dict, model=model, full_layer_name=full_layer_name, **more)
            return input_dict

    return Deserialise()
