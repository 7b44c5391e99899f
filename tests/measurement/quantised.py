"""Tiny quantised classifiers for the tests of this room."""

from typing import Any

from transformers import BitsAndBytesConfig

from tests.tiny import tiny_classifier


def quantised(bits: int, **options: Any) -> tuple[Any, Any]:
    """A tiny BERT of 64 x 128 and the same one in 8 or 4 bits, its task head and pooler in float."""
    model = tiny_classifier("bert", hidden=64, ffn=128)
    keep = ["classifier", "bert.pooler.dense"]
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=keep, **options)
    small = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict(), quantization_config=config)
    for module in small.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, small.eval()
