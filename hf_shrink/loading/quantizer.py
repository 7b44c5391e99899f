"""What ``from_pretrained`` calls for ``quant_method: hf_shrink``: resize first, then leave the rest to transformers' own.

Imported while transformers itself is half imported (see ``register``), so only what is there by then is imported on top.
"""

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import BitsAndBytesConfig

from hf_shrink.errors import ResourceError
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig


class ShrinkQuantizer(HfQuantizer):
    """Resizes projections of a model that has no weights yet; bitsandbytes, where there is any, is transformers' own."""

    quantization_config: ShrinkConfig

    def __init__(self, quantization_config: ShrinkConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.inner: Any = None  # an HfQuantizer, where the model is quantised as well
        if quantization_config.bitsandbytes is not None:
            options = BitsAndBytesConfig(**quantization_config.bitsandbytes)  # type: ignore[no-untyped-call]
            self.inner = AutoHfQuantizer.from_config(options, pre_quantized=self.pre_quantized)

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ResourceError where bitsandbytes is needed and missing."""
        if self.inner is not None:
            try:
                self.inner.validate_environment(*args, **kwargs)
            except ImportError as error:
                raise ResourceError("this model is stored by bitsandbytes. Try: pip install bitsandbytes") from error

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_shrink.loading.shapes import resize

        resize(model, self.quantization_config.shapes, self.quantization_config.head_dim)
        if self.inner is not None:
            self.inner._process_model_before_weight_loading(model, **kwargs)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_shrink.loading.conversions import drop_quantizer_conversions
        from hf_shrink.loading.remote_code import forget
        from hf_shrink.quantization.bitsandbytes import disable_cpu_repacking

        if not hasattr(type(model), "_auto_class") or type(model)._auto_class is None:
            forget(model.config)
        if self.inner is not None:
            self.inner._process_model_after_weight_loading(model, **kwargs)
            disable_cpu_repacking(model)
            drop_quantizer_conversions(model)
        return model

    def update_dtype(self, dtype: Any) -> Any:
        return dtype if self.inner is None else self.inner.update_dtype(dtype)

    def update_device_map(self, device_map: Any) -> Any:
        return device_map if self.inner is None else self.inner.update_device_map(device_map)

    def adjust_max_memory(self, max_memory: Any) -> Any:
        return max_memory if self.inner is None else self.inner.adjust_max_memory(max_memory)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self.inner is not None and bool(self.inner.param_needs_quantization(model, param_name, **kwargs))

    def get_quantize_ops(self) -> Any:
        assert self.inner is not None, "only asked for what param_needs_quantization names"
        return self.inner.get_quantize_ops()

    def get_load_operations(self) -> dict[str, Any]:
        return {} if self.inner is None else self.inner.get_load_operations()

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        return model if self.inner is None else self.inner._dequantize(model, dtype=dtype)

    @property
    def serialized_names(self) -> dict[str, list[str]]:  # type: ignore[override]
        """Tensor names of a stored weight."""
        return {} if self.inner is None else self.inner.serialized_names

    @property
    def quantized_element_size(self) -> float | None:
        """Bytes of a stored weight's number, where it is quantised."""
        return None if self.inner is None else self.inner.quantized_element_size

    def is_serializable(self) -> bool:
        """Any such model can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Shapes alone train like any model; with bitsandbytes, adapters do."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """All weights train where nothing is quantised; the Trainer refuses such a model otherwise."""
        return self.inner is None

    @property
    def is_compileable(self) -> bool:
        """Other shapes compile; what is quantised as transformers says."""
        return self.inner is None or bool(self.inner.is_compileable)


# Assigned, because transformers' own register functions refuse a second time: a reload would fail, or leave the old classes.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ShrinkConfig
AUTO_QUANTIZER_MAPPING[METHOD] = ShrinkQuantizer
