"""What tests of pruning while loading ask for, and the same made in memory: the second implementation."""

from pathlib import Path

from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_shrink import PruningConfig, QuantizationConfig, prune, quantize
from hf_shrink.pruning.entries import fit_for_bits
from tests.loading.cuts import noisy

HEADS = PruningConfig(structure="heads", sparsity=0.5, round_to=1)


FFN = PruningConfig(structure="ffn", sparsity=0.5, round_to=8)


LAYERS = PruningConfig(structure="layers", sparsity=1 / 3)


HIDDEN = PruningConfig(structure="hidden", sparsity=0.25, round_to=8)


STRUCTURES = {
    "heads": [HEADS],
    "ffn": [FFN],
    "layers": [LAYERS],
    "hidden": [HIDDEN],
    "single": [PruningConfig(sparsity=0.5)],
    "random": [PruningConfig(sparsity=0.3, criterion="random")],
    "threshold": [PruningConfig(threshold=0.5, threshold_in="std")],
    "n_of_m": [PruningConfig(structure="n_of_m", pattern=(2, 4), criterion="magnitude_l2")],
    "block": [PruningConfig(structure="block", block=(4, 8), sparsity=0.5)],
    "global": [PruningConfig(structure="ffn", sparsity=0.5, allocation="global", criterion="magnitude_l2")],
    "one target": [PruningConfig(structure="heads", sparsity=0.5, round_to=1, target_modules=["0.attention.self.query"])],
    "hidden before layers": [HIDDEN, LAYERS],
    "all": [LAYERS, HIDDEN, HEADS, FFN],
    "zeros in less": [HIDDEN, LAYERS, FFN, PruningConfig(sparsity=0.5, target_modules=["query", "attention.output.dense"])],
    "nothing": [],
}


STORED = {
    "float": None,
    "int8": QuantizationConfig(bits=8),
    "nf4": QuantizationConfig(bits=4),
    "bf16": QuantizationConfig(bits=16, dtype="bfloat16"),
    "int8-bf16": QuantizationConfig(bits=8, dtype="bfloat16", threshold=0.0),
    "fp4-bf16": QuantizationConfig(bits=4, quant_type="fp4", dtype="bfloat16", double_quant=False, compute_dtype="bfloat16"),
}


def auto(family: str):
    return AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification


def folder_of(model, path: Path, **more) -> Path:
    noisy(model).save_pretrained(path, **more)
    return path


def in_memory(folder: Path, family: str, pruning, quantization, **how):
    """The second implementation: load everything, prune, quantise."""
    model = auto(family).from_pretrained(folder, **how)
    model = prune(model, fit_for_bits(pruning, quantization and quantization.bits)) if pruning else model
    return model if quantization is None else quantize(model, quantization)


def load(folder: Path, given, **how):
    return AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=given, **how)
