"""Speed and memory of 8 and 4 bits on a CUDA device against float16, all in one process and in turns.

    python -m tests.benchmarks.gpu_formats MODEL [--runs 40] [--batches 1 32] [--length 512]

MODEL is a causal language model: a folder or a Hub id. Each row is the median of the runs of one forward pass, and the device
memory that the model itself takes and that a pass adds at its peak. Without a CUDA device the script ends with exit code 4.
"""

import argparse
import statistics
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_shrink import QuantizationConfig, ShrinkConfig

FORMATS: dict[str, QuantizationConfig | None] = {
    "float16": None,
    "8 bits": QuantizationConfig(bits=8, dtype="float16"),
    "nf4, fp16": QuantizationConfig(bits=4, dtype="float16", compute_dtype="float16"),
    "nf4, bf16": QuantizationConfig(bits=4, dtype="bfloat16", compute_dtype="bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("torch sees no CUDA device; this benchmark is about its kernels.\n")
        raise SystemExit(4)
    models, held = {}, {}
    for name, config in FORMATS.items():
        before = torch.cuda.memory_allocated()
        models[name] = _load(options.model, config)
        held[name] = torch.cuda.memory_allocated() - before
    print(f"{torch.cuda.get_device_name()}, {options.length} tokens, median of {options.runs}")
    print(f"{'format':12}{'batch':>6}{'ms':>10}{'ratio':>8}{'model, MB':>12}{'pass, MB':>10}")
    for batch in options.batches:
        ids = torch.randint(models["float16"].config.vocab_size, (batch, options.length), device="cuda")
        times: dict[str, list[float]] = {name: [] for name in models}
        rise = {name: _once(model, ids)[1] for name, model in models.items()}  # also warms up
        for _ in range(options.runs):
            for name, model in models.items():
                times[name].append(_once(model, ids)[0])
        plain = statistics.median(times["float16"])
        for name, found in times.items():
            ms = statistics.median(found)
            print(f"{name:12}{batch:6}{ms:10.2f}{plain / ms:7.2f}x{held[name] / 1e6:12.1f}{rise[name] / 1e6:10.1f}")


def _load(model: str, config: QuantizationConfig | None) -> PreTrainedModel:
    words: dict[str, Any] = {"device_map": {"": 0}, "dtype": getattr(torch, (config and config.dtype) or "float16")}
    if config is not None:
        words["quantization_config"] = ShrinkConfig(quantization=config)
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, **words)
    return found.eval()


@torch.inference_mode()
def _once(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, int]:
    """Milliseconds of one pass by the device's own clock, and the bytes that it adds at its peak."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()  # type: ignore[no-untyped-call]
    model(input_ids=ids)
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return begin.elapsed_time(end), torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
