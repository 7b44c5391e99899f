"""What a whole layer or a dimension of the hidden width is worth: a criterion's scores of weights, put together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.calibrate import calibrate
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import Criterion, Stats, as_criterion
from hf_shrink.pruning.lending import Lend, in_memory
from hf_shrink.pruning.statistics import Recorder, Watched, key_of
from hf_shrink.pruning.sums import GIVEN
from hf_shrink.targets import Projection, oriented, projections

Dims = Mapping[str, tuple[int, ...]]
"""Parameter name -> which of its stored dimensions run over the hidden width."""


def layer_scores(
    model: Any,
    config: PruningConfig,
    entry: str,
    batches: Sequence[Mapping[str, Tensor]] | None = None,
    lend: Lend = in_memory,
) -> Tensor:
    """The mean score of a weight in the projections of each layer, float64 ``[layers]``, high = keep.

    The mean, so that a larger layer is not worth more for its size; with scores that are squares, its root. For an encoder and
    its decoder it is the sum of both.

    Raises:
        RecipeError: the criterion needs data that is not there.
        NonFiniteError: a score is NaN or infinite.
    """
    criterion = as_criterion(config.criterion)
    assert criterion.function is not None, "the config has checked"
    if batches is None and set(criterion.needs) - GIVEN:
        raise RecipeError(f"{entry}.criterion: {config.criterion} needs batches of data; pass calibration=[...].")
    stacks = [
        [
            {f"{stack.layers}.{i}.{path}": module for path, module in projections(layer).items()}
            for i, layer in enumerate(layers)
        ]
        for stack, layers in stacks_of(model, family_of(model, entry))
    ]
    named = [(name, module) for layers in stacks for layer in layers for name, module in layer.items()]
    watched = [Watched(name, module, criterion.needs, seed=config.seed or 0) for name, module in named]
    recorder = Recorder(watched) if criterion.needs else None
    if recorder is not None and recorder.wants_data:
        calibrate(model, recorder, batches or ())
    values = [[_mean(criterion, layer, recorder, entry, lend) for layer in layers] for layers in stacks]
    return torch.tensor(values, dtype=torch.float64).sum(dim=0)


def dimension_scores(model: Any, dims: Dims, config: PruningConfig, entry: str, lend: Lend = in_memory) -> Tensor:
    """The sum (or norm) of the scores of all weights at each dimension of the hidden width, float64 ``[hidden]``, high = keep.

    Every matrix that reads or writes the hidden width counts, embeddings included, a tied one once; biases and norms leave
    with their dimension but are not scored: a criterion compares weights. What has more than two dimensions, as a convolution,
    is scored as the matrix ``[hidden, all the rest]``. What ``lend`` leaves on meta is new, says nothing yet and is not scored.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    criterion = as_criterion(config.criterion)
    assert criterion.function is not None and not set(criterion.needs) - GIVEN, "the config has checked"
    totals: list[Tensor] = []
    transposed = {f"{name}.weight" for name, module in projections(model).items() if oriented(module) is not module.weight}
    for name, parameter in model.named_parameters():  # a tied one comes once
        if name not in dims or parameter.dim() < 2:
            continue
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        with lend([module]):
            matrix = getattr(module, attribute).detach()
            for dim in () if matrix.is_meta else dims[name]:
                flat = matrix.flatten(1) if dim == 0 else matrix.movedim(dim, -1).flatten(0, -2)
                along = 1 if (dim == 0) == (name in transposed) else 0
                flat = matrix.T if name in transposed else flat
                scores = criterion.function(flat, _key(criterion, name, config.seed or 0)).double()
                totals.append(_finite(scores.sum(dim=1 - along), name, entry))
    total = torch.stack(totals).sum(dim=0)
    return total.sqrt() if criterion.combine == "norm" else total


def _mean(criterion: Criterion, layer: Mapping[str, Projection], recorder: Recorder | None, entry: str, lend: Lend) -> float:
    total, count = 0.0, 0
    for name, module in layer.items():
        stats = {} if recorder is None else recorder.stats(name)
        with lend([module]):
            scores = criterion.function(oriented(module), stats)  # type: ignore[misc]
            total += float(_finite(scores.double().sum(), name, entry))
            count += scores.numel()
    return (total / count) ** 0.5 if criterion.combine == "norm" else total / count


def _key(criterion: Criterion, name: str, seed: int) -> Stats:
    return {"key": key_of(name, seed)} if criterion.needs else {}


def _finite(scores: Tensor, name: str, entry: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError(f"{entry}: {name}: pruning scores are not finite; nothing was removed. Repair the weights.")
    return scores
