"""Run as a program: load FOLDER in each way, and print by how many bytes a process grows at most."""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from hf_shrink import PruningConfig, QuantizationConfig, ShrinkConfig

PRUNING = [PruningConfig(structure="heads", sparsity=0.5), PruningConfig(structure="ffn", sparsity=0.5)]
ZEROS = [PruningConfig(sparsity=0.5)]
WAYS = {
    "stock 4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "stock 8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "ours 4": lambda: ShrinkConfig(pruning=PRUNING, quantization=QuantizationConfig(bits=4)),
    "ours 8": lambda: ShrinkConfig(pruning=PRUNING, quantization=QuantizationConfig(bits=8)),
    "zeros 4": lambda: ShrinkConfig(pruning=ZEROS, quantization=QuantizationConfig(bits=4)),
}


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def grown(way: str, folder: str) -> int:
    """In a process of its own, which begins with all libraries loaded."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        before = status("VmRSS")
        model = AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=WAYS[way]())
        os.write(writer, str(status("VmHWM") - before).encode())
        os._exit(int(model is None))
    os.close(writer)
    os.waitpid(child, 0)
    return int(os.read(reader, 99))


def main() -> None:
    small, folder = sys.argv[1:]
    torch.set_num_threads(1)
    for way in WAYS.values():
        AutoModelForSequenceClassification.from_pretrained(small, quantization_config=way())
    gc.collect()
    print(json.dumps({way: grown(way, folder) for way in WAYS}))


if __name__ == "__main__":
    main()
