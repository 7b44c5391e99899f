"""What quantising did to each layer's weights: how they were spread, how far the stored ones are off, and the bytes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.quantization.backend import backend_for
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.embeddings import embedding_tensors, tables
from hf_shrink.quantization.fidelity_table import FidelityTable
from hf_shrink.quantization.plan import keep_plan
from hf_shrink.targets import oriented, projections

SIGMAS = 6
"""Weights further than this many standard deviations from the mean are outliers."""
BINS = 48
"""Of the histogram, from minus to plus ``SIGMAS`` deviations around the mean."""


@dataclass(frozen=True)
class LayerFidelity:
    """One projection, or one table of embeddings.

    Attributes:
        name: in the model.
        scheme: how its weight is stored.
        mean, deviation: of the float weights.
        outliers: how many are further than ``SIGMAS`` deviations from the mean.
        mse: mean squared difference of the stored weights, put back into floats, from the float weights.
        sqnr: 10 log10(sum of w squared / sum of the squared differences), in dB; None where nothing differs.
        bytes: of the weight before and after, with scales.
        histogram: weights in each of ``BINS`` bins of one width; outliers are in none.
    """

    name: str
    scheme: str
    mean: float
    deviation: float
    outliers: int
    mse: float
    sqnr: float | None
    bytes: tuple[int, int]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Fidelity:
    """All projections of a model, in its order, and embeddings that were stored in fewer bits."""

    layers: tuple[LayerFidelity, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, for ``--json``."""
        return [asdict(layer) for layer in self.layers]

    def rich(self) -> FidelityTable:
        """For the terminal."""
        return FidelityTable(self.layers)


def fidelity(model: PreTrainedModel, small: PreTrainedModel, config: QuantizationConfig) -> Fidelity:
    """Compare each projection of ``model`` with what ``quantize(model, config)`` made of it.

    Args:
        model: in float.
        small: the quantised copy.
        config: what it was made with.
    """
    plan = keep_plan(model, config)
    bits = stored_bits(small)
    found = []
    for name, layer in projections(model).items():
        weight = oriented(layer).detach().float()
        if name in bits:
            backend, words = backend_for(bits[name]), config.at(bits[name])
            stored = backend.stored(name, layer, words).values()
            size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in stored)
            found.append(_layer(name, _scheme(words), weight, backend.restored(small.get_submodule(name)), size, layer.weight))
        else:
            kept = projections(small)[name]
            cast = "as it was" if kept.weight.dtype == layer.weight.dtype else "cast"
            reason = plan.kept.get(name, "left in float by its budget" if config.bits == "auto" else cast)
            how = f"{str(kept.weight.dtype).removeprefix('torch.')} ({reason})"
            size = kept.weight.numel() * kept.weight.element_size()
            found.append(_layer(name, how, weight, oriented(kept).detach(), size, layer.weight))
    return Fidelity((*found, *_tables(model, small, config)))


def _tables(model: PreTrainedModel, small: PreTrainedModel, config: QuantizationConfig) -> Iterator[LayerFidelity]:
    """The embeddings, where they lie otherwise in the file."""
    before, after = tables(model), tables(small)
    for name, (dtype, shape) in embedding_tensors(model, config, bool(stored_bits(small))).items():
        scheme = "uniform int8, a scale a row (embedding)" if dtype == torch.int8 else "bfloat16 (embedding)"
        table, stored = before[name].detach(), after[name].detach().float()
        yield _layer(name.removesuffix(".weight"), scheme, table.float(), stored, dtype.itemsize * math.prod(shape), table)


def _scheme(config: QuantizationConfig) -> str:
    if config.bits == 8:
        return "uniform int8, a scale a row"
    scales = "8-bit scales" if config.double_quant else "float32 scales"
    return f"non-uniform {config.quant_type}, blocks of 64, {scales}"


def _layer(name: str, scheme: str, weight: Tensor, stored: Tensor, size: int, as_it_was: Tensor) -> LayerFidelity:
    mse, sqnr = errors(weight, stored)
    mean, deviation = float(weight.mean()), float(weight.std(correction=0))
    far = SIGMAS * deviation
    counts = torch.histc(weight, BINS, mean - far, mean + far) if deviation else torch.zeros(BINS)
    return LayerFidelity(
        name=name,
        scheme=scheme,
        mean=mean,
        deviation=deviation,
        outliers=int(((weight - mean).abs() > far).count_nonzero()),
        mse=mse,
        sqnr=sqnr,
        bytes=(as_it_was.numel() * as_it_was.element_size(), size),
        histogram=tuple(int(count) for count in counts),
    )


def errors(weight: Tensor, stored: Tensor) -> tuple[float, float | None]:
    """``(MSE, SQNR in dB)`` of ``stored`` against ``weight``, in float64; None where nothing differs."""
    difference = (weight.double() - stored.double()).square()
    noise = float(difference.sum())
    signal = float(weight.double().square().sum())
    return noise / weight.numel(), None if noise == 0 else 10 * math.log10(signal / noise)


def histograms(fidelity: Fidelity) -> Mapping[str, tuple[float, float, Sequence[int]]]:
    """For each layer the mean, the width of a bin, and the counts."""
    return {each.name: (each.mean, 2 * SIGMAS * each.deviation / BINS, each.histogram) for each in fidelity.layers}
