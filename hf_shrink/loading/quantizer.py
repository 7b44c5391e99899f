"""What ``from_pretrained`` calls for ``quant_method: hf_shrink``: structure first, then the rest is for transformers' own.

Imported while transformers itself is half imported (see ``register``), so only what is there by then is imported on top.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import BitsAndBytesConfig

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.loading.mixed import MixedQuantizer
from hf_shrink.loading.shrink_config import METHOD, ShrinkConfig, refuse_embeddings


class ShrinkQuantizer(HfQuantizer):
    """Gives a model its structure before it has weights; bitsandbytes, where there is any, is transformers' own.

    Where the config asks for pruning or quantisation, that happens to each tensor on its way from the file.
    """

    quantization_config: ShrinkConfig

    def __init__(self, quantization_config: ShrinkConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            quantization_config = _argument(quantization_config)
        super().__init__(quantization_config, **kwargs)
        self.inner: Any = None  # an HfQuantizer, where the model is quantised as well
        self.stream: Any = None  # where something is done while loading
        if quantization_config.is_asked_for:
            from hf_shrink.loading.while_loading import Stream

            self.stream = Stream(quantization_config.pruning, quantization_config.quantization)
            self.pre_quantized = False
        options = self._options(quantization_config)
        if options is not None:
            self.inner = (
                AutoHfQuantizer.from_config(options, pre_quantized=self.pre_quantized)
                if quantization_config.eight_bits is None
                else MixedQuantizer(options, quantization_config.eight_bits)
            )

    @staticmethod
    def _options(config: ShrinkConfig) -> Any:
        """The stored or the asked-for options of bitsandbytes; None where there are none."""
        if config.bitsandbytes is not None:
            return BitsAndBytesConfig(**config.bitsandbytes)  # type: ignore[no-untyped-call]
        if config.quantization is None or config.quantization.bits == 16:
            return None
        from hf_shrink.quantization.bitsandbytes import to_hf_config

        return to_hf_config(config.quantization, ())

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ResourceError where bitsandbytes is needed and missing."""
        if self.inner is not None:
            from hf_shrink.quantization.bitsandbytes import library

            library()
            try:
                self.inner.validate_environment(*args, **kwargs)
            except ImportError as error:
                raise ResourceError("this model is stored by bitsandbytes. Try: pip install bitsandbytes") from error

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_shrink.headers import check_storage
        from hf_shrink.loading.shapes import resize

        if files := kwargs.get("checkpoint_files"):
            folder = Path(files[0]).parent
            check_storage(folder.name, self.quantization_config, folder, [Path(file) for file in files])
        resize(model, self.quantization_config.shapes, self.quantization_config.head_dim)
        if self.stream is not None:
            skip = self.stream.prepare(model, kwargs.get("checkpoint_files"))
            if self.inner is not None:
                self.inner.quantization_config.llm_int8_skip_modules = skip
        if self.inner is not None:
            self.inner._process_model_before_weight_loading(model, **kwargs)
        if self.stream is not None:
            self.stream.number_as_stored(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from hf_shrink.loading.conversions import drop_quantizer_conversions
        from hf_shrink.loading.remote_code import forget
        from hf_shrink.quantization.embeddings import take_packed
        from hf_shrink.repacking import disable_cpu_repacking

        if not hasattr(type(model), "_auto_class") or type(model)._auto_class is None:
            forget(model.config)
        if self.inner is not None:
            self.inner._process_model_after_weight_loading(model, **kwargs)
            disable_cpu_repacking(model)
        drop_quantizer_conversions(model)
        if self.stream is not None:
            self.stream.finish(model)
        if self.stream is not None or self._is_stock:
            self._describe(model)
        if self.quantization_config.embeddings is not None:
            take_packed(model)
        elif self.inner is None:
            model.is_quantized = False  # other shapes are floats like any: half() and float() refuse a model that is
        return model

    @property
    def _is_stock(self) -> bool:
        """Whether stock options describe the whole folder: it came to us with an argument of ours."""
        record = self.quantization_config
        others = (record.shapes, record.head_dim, record.eight_bits, record.embeddings)
        return record.bitsandbytes is not None and not any(others)

    def _describe(self, model: Any) -> None:
        """From here on everything is as if ``model`` had been loaded from the folder that it will be saved to."""
        from hf_shrink.loading.save import record_shapes, write_embeddings

        del model.config.quantization_config
        if self.inner is not None:
            model.config.quantization_config = self.inner.quantization_config
        tier = record_shapes(model)
        self.stream = None
        if tier == "plugin":
            self.quantization_config = model.config.quantization_config
        elif self.inner is not None:
            stock = self.inner.quantization_config
            model.quantization_method = stock.quant_method
            self.quantization_config = ShrinkConfig(bitsandbytes=stock.to_dict())
        else:
            self.remove_quantization_config(model)
            model.config._is_quantized = False
        write_embeddings(model)

    def update_dtype(self, dtype: Any) -> Any:
        return dtype if self.inner is None else self.inner.update_dtype(dtype)

    def update_device_map(self, device_map: Any) -> Any:
        return device_map if self.inner is None else self.inner.update_device_map(device_map)

    def adjust_max_memory(self, max_memory: Any) -> Any:
        return max_memory if self.inner is None else self.inner.adjust_max_memory(max_memory)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        if self.stream is not None and self.stream.changes(model, param_name):
            return True
        return self._is_inner(model, param_name, **kwargs)

    def _is_inner(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self.inner is not None and bool(self.inner.param_needs_quantization(model, param_name, **kwargs))

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        size = self.quantized_element_size if self._is_inner(model, param_name) else None
        return float(param.element_size() if size is None else size)

    def get_quantize_ops(self) -> Any:
        if self.stream is not None:
            from hf_shrink.loading.while_loading import StreamOperation

            return StreamOperation(self.stream, self.inner)
        assert self.inner is not None, "only asked for what param_needs_quantization names"
        return self.inner.get_quantize_ops()

    def get_load_operations(self) -> dict[str, Any]:
        return {} if self.inner is None else self.inner.get_load_operations()

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """Tables that lie otherwise in the file come first: bitsandbytes takes whatever ends in ``weight``."""
        updated = super().update_weight_conversions(weight_conversions, model)  # type: ignore[no-untyped-call]
        if self.quantization_config.embeddings is None:
            return updated
        from hf_shrink.loading.conversions import table_conversions

        return [*table_conversions(model), *updated]

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        """What is written to the file; the config, which is written after it, says no other."""
        from hf_shrink.loading.save import record_shapes
        from hf_shrink.quantization.embeddings import RECORD, as_stored

        if (stored := as_stored(model)) is None and hasattr(model.config, RECORD):
            record_shapes(model)  # tables that were trained since are floats
        return stored, {}

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        if self.inner is not None:
            import torch

            from hf_shrink.quantization.bitsandbytes import dequantize_in_place

            dequantize_in_place(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)  # saving makes it text
        from hf_shrink.quantization.embeddings import RECORD
        from hf_shrink.quantization.plan import KEPT

        for record in (RECORD, KEPT, "layer_bits"):
            vars(model.config).pop(record, None)
        return model

    def remove_quantization_config(self, model: Any) -> None:
        """Shapes stay on record: without them what is saved afterwards would not load."""
        from hf_shrink.loading.save import record_shapes

        super().remove_quantization_config(model)  # type: ignore[no-untyped-call]
        record_shapes(model)

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


def _argument(given: ShrinkConfig) -> ShrinkConfig:
    """What is asked of a folder that says nothing itself."""
    from hf_shrink.loading.merging import in_our_words

    if given.embeddings is not None:
        refuse_embeddings(given.embeddings)
    if given.is_empty:
        raise RecipeError("ShrinkConfig: asks for nothing; give it pruning or quantization, or load without it.")
    return in_our_words(given)


# Assigned, because transformers' own register functions refuse a second time: a reload would fail, or leave the old classes.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ShrinkConfig
AUTO_QUANTIZER_MAPPING[METHOD] = ShrinkQuantizer


@contextmanager
def unregistered() -> Iterator[None]:
    """transformers as it is where nobody has imported hf_shrink: it refuses what only we can load."""
    tables: tuple[dict[str, Any], ...] = (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING)
    ours = [table.pop(METHOD) for table in tables]
    try:
        yield
    finally:
        for table, entry in zip(tables, ours, strict=True):
            table[METHOD] = entry


_MERGE = "merge_quantization_configs"
_theirs = getattr(AutoHfQuantizer, _MERGE)
_stock_merge = getattr(_theirs, "stock", _theirs)  # after a reload, not ours again


def _merge(quantization_config: Any, quantization_config_from_args: Any) -> Any:
    """transformers drops an argument of the same class with a warning, and has no ShrinkError for one of another class."""
    from hf_shrink.loading.merging import concerns, merge

    if quantization_config_from_args is None or not concerns(quantization_config, quantization_config_from_args):
        return _stock_merge(quantization_config, quantization_config_from_args)
    return merge(quantization_config, quantization_config_from_args)


setattr(_merge, "stock", _stock_merge)  # noqa: B010 - functions have no such attribute for a type checker
setattr(AutoHfQuantizer, _MERGE, staticmethod(_merge))
