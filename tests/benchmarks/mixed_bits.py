"""What ``bits: auto`` loses beside uniform nf4 in as many bytes, on a fine-tuned classifier.

    python -m tests.benchmarks.mixed_bits --teacher TEACHER --data SST2 [--budgets 4.51 5 6] [--sets 2] [--rows 64]

TEACHER is a fine-tuned MiniLM-L6, SST2 a folder with train.tsv and dev.tsv (sentence, tab, label, no header). KL of the answers
from the float model's, mean over the first 256 dev sentences; bits are given out by ``--rows`` training sentences, another draw
for each set.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_shrink import QuantizationConfig, quantize
from hf_shrink.models.load import load_for
from hf_shrink.models.reference import resolve
from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.divergence import Divergence
from hf_shrink.quantization.knapsack import Option, spend
from hf_shrink.quantization.mixed import quantize_mixed, store_mixed
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.quantization.size import bytes_with, predicted_bytes
from hf_shrink.targets import projections
from tests.benchmarks.onnx_speed import TOKENIZER, encoded, read

JUDGED = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[4.51, 5.0, 6.0], help="bits a weight")
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    model = load_for("text-classification", words.teacher, new_head=False)
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    train, dev = (read(words.data / f"{split}.tsv") for split in ("train", "dev"))
    judge = Divergence(model, list(encoded(tokenizer, sorted((text for text, _ in dev[:JUDGED]), key=len), 32)))

    def show(name: str, size: int, small: Any) -> None:
        print(f"{name:50}{size / 1e6:8.2f} MB{1000 * judge.of(small):10.3f} mnat", flush=True)

    for name, config in {
        "uniform nf4, double": QuantizationConfig(bits=4),
        "uniform nf4, float32 scales": QuantizationConfig(bits=4, double_quant=False),
    }.items():
        show(name, predicted_bytes(model, config), quantize(model, config))
    auto = QuantizationConfig(bits="auto", budget={"bits_per_weight": words.budgets[0]})
    sizes = bytes_by_width(model, auto)
    rooms = {budget: int(budget * weights(model, auto) / 8) for budget in words.budgets}
    for budget, room in rooms.items():
        bits = first_layers_in_eight(sizes, room)
        show(f"{budget:g} bits: nf4, 8 bits from the first layer on", bytes_with(model, auto, bits), stored(model, auto, bits))
    for draw in range(words.sets):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))[: words.rows]
        calibration = list(encoded(tokenizer, sorted((train[i][0] for i in order.tolist()), key=len), 16))
        mixed = quantize_mixed(model, auto, calibration)
        losses = {each.name: {4: each.kl_4, 8: each.kl_8, 16: 0.0} for each in mixed.plan.layers}
        options = {n: [Option(b, size, losses[n][b] or 0.0) for b, size in each.items()] for n, each in sizes.items()}
        for budget, room in rooms.items():
            bits = {name: option.bits for name, option in spend(options, room).items()}
            if budget == words.budgets[0]:
                assert bits == {each.name: each.bits for each in mixed.plan.layers}, "not what quantize_mixed decides"
            show(f"{budget:g} bits: auto, set {draw}", bytes_with(model, auto, bits), stored(model, auto, bits))


def bytes_by_width(model: Any, config: QuantizationConfig) -> dict[str, dict[int, int]]:
    """Of each layer that can be quantised the bytes of its weight in float, in 4 and in 8 bits."""
    layers, found = projections(model), dict[str, dict[int, int]]()
    for name in keep_plan(model, config).quantized:
        found[name] = {16: layers[name].weight.numel() * layers[name].weight.element_size()}
        for width in (4, 8):
            at = config.at(4 if width == 4 else 8)
            if backend_for(width).unfit(layers[name], at) is None:
                tensors = backend_for(width).stored(name, layers[name], at).values()
                found[name][width] = sum(kind.itemsize * math.prod(shape) for kind, shape in tensors)
    return found


def weights(model: Any, config: QuantizationConfig) -> int:
    return sum(projections(model)[name].weight.numel() for name in keep_plan(model, config).quantized)


def first_layers_in_eight(sizes: Mapping[str, Mapping[int, int]], room: int) -> dict[str, int]:
    """4 bits everywhere, and 8 from the first layer on, as long as the bytes last: what spends them without measuring."""
    bits, left = dict.fromkeys(sizes, 4), room - sum(each[4] for each in sizes.values())
    for name, each in sizes.items():
        if (left := left - (each[8] - each[4])) < 0:
            break
        bits[name] = 8
    return bits


def stored(model: Any, config: QuantizationConfig, bits: Mapping[str, int]) -> Any:
    return store_mixed(model, config, keep_plan(model, config), bits)


if __name__ == "__main__":
    main()
