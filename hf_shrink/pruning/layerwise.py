"""Prune layer after layer on calibration data, each on what the pruned ones before it put out.

One layer's statistics are alive at once, beside the hidden states of the batches: a model with many layers needs no more memory
than one with few.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import FAMILIES, family_of, named_layers, stacks_of
from hf_shrink.pruning.activations import wanda
from hf_shrink.pruning.calibrate import evaluating
from hf_shrink.pruning.capture import Call, Stop, capture, counted, without_cache
from hf_shrink.pruning.patterns import check_n_of_m, keep_n_of_m, keep_top_of_rows
from hf_shrink.pruning.refit import STEPS
from hf_shrink.pruning.sparsegpt import DAMPING, Factor, factor_of, prune_by_factor
from hf_shrink.targets import Projection, oriented, projections

METHODS = ("sparsegpt", "wanda")
_ROWS = 2048  # positions that are float32 at once


@dataclass(frozen=True)
class LayerTarget:
    """How one projection is pruned.

    Attributes:
        criterion: ``wanda`` (arXiv:2306.11695: the lowest ``|W| * norm of the input`` of each output go) or ``sparsegpt``.
        sparsity: fraction removed, in [0, 1); None where ``pattern`` says it.
        pattern: ``(n, m)``: n of every m neighbouring inputs stay.
        reconstruct: sparsegpt: ``refit`` the weights that stay.
    """

    criterion: str
    sparsity: float | None = None
    pattern: tuple[int, int] | None = None
    reconstruct: bool = False


@torch.no_grad()
def prune_layerwise(
    model: PreTrainedModel, targets: Mapping[str, LayerTarget], batches: Sequence[Mapping[str, Tensor]]
) -> None:
    """Prune ``model`` in place: what goes of a target is zero after it.

    A layer's statistics are taken with the layer whole; then its projections are pruned, and the layer runs again for the
    next one. Padding does not count: positions where ``attention_mask`` (of a decoder that reads an encoder:
    ``decoder_attention_mask``, or labels of -100) is 0. Statistics are float32 whatever the model is.

    Args:
        model: a float model of a known family; every other weight stays.
        targets: by full name of the projection; all inside transformer layers.
        batches: keyword arguments of the forward pass.

    Raises:
        RecipeError: no batches, nothing but padding, a target that no layer holds or that the calibration never reaches, or a
            pattern that does not fit.
        MismatchError: a mask that does not fit what a layer reads.
        NonFiniteError: weights or calibration inputs of a target are NaN or infinite; the layers before it are pruned already.
    """
    if not batches:
        raise RecipeError("calibration: 0 batches; pass at least one.")
    layers = named_layers(model, family_of(model, "calibration"))
    inside = check_targets(model, targets)
    with evaluating(model), without_cache(model):
        for stack in _stacks(model, layers):
            last = max((i for i, name in enumerate(stack) if inside[name]), default=-1)
            chosen = dict(list(stack.items())[: last + 1])  # what follows need not run
            if chosen:
                _prune_stack(chosen, inside, targets, capture(model, chosen, batches))


def _prune_stack(
    layers: Mapping[str, nn.Module],
    inside: Mapping[str, Mapping[str, Projection]],
    targets: Mapping[str, LayerTarget],
    calls: Sequence[Call],
) -> None:
    last = list(layers)[-1]
    for name, layer in layers.items():
        if inside[name]:
            _prune_layer(name, layer, inside[name], targets, calls)
        if name != last:
            for call in calls:
                call.advance(name, layer)


def _prune_layer(
    name: str,
    layer: nn.Module,
    modules: Mapping[str, Projection],
    targets: Mapping[str, LayerTarget],
    calls: Sequence[Call],
) -> None:
    statistics = _Statistics(modules, targets)
    with statistics.watching():
        for call in calls:
            statistics.see(name, layer, call)
    for owner, readers in statistics.readers().items():
        found = statistics.take(owner, readers)
        for reader in readers:
            weight = _finite(oriented(modules[reader]).detach().float(), f"{reader}.weight", "weights")
            oriented(modules[reader]).copy_(_pruned(reader, weight, targets[reader], found))


def _pruned(name: str, weight: Tensor, target: LayerTarget, found: Factor | Tensor) -> Tensor:
    """The new weight; ``found`` is the factor of the inverse Hessian, or the norm of each input."""
    if isinstance(found, Factor):
        steps = STEPS if target.reconstruct else 0
        return prune_by_factor(weight, found, sparsity=target.sparsity, pattern=target.pattern, refit_steps=steps, name=name)[0]
    scores = wanda(weight, {"input_norm": found})
    if target.pattern is not None:
        mask = keep_n_of_m(scores, *target.pattern, name=name)
    else:
        assert target.sparsity is not None, "checked"
        mask = keep_top_of_rows(scores, target.sparsity)
    return weight * mask


class _Statistics:
    """What is known of the inputs of one layer's targets. Projections that read one tensor share what is known of it."""

    def __init__(self, modules: Mapping[str, Projection], targets: Mapping[str, LayerTarget]) -> None:
        self._modules, self._targets = modules, targets
        self._sums: dict[str, Tensor] = {}
        self._owner: dict[str, str] = {}
        self._order: list[str] = []
        self._stops = False
        self._input: Tensor | None = None
        self._owner_of_input: dict[tuple[str, tuple[int, int] | None], str] = {}
        self._mask_for: Callable[[Tensor], Tensor | None] = lambda features: None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what the targets read, for as long as this is open."""
        handles = [module.register_forward_pre_hook(self._looker(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def see(self, name: str, layer: nn.Module, call: Call) -> None:
        """Run one batch as far as there is something to see."""
        self._mask_for = lambda features: call.mask_for(name, features)
        self._order = []
        with suppress(Stop):
            call.run(name, layer)
        self._input = None
        self._stops = sorted(self._order) == sorted(self._modules)  # each was called once: after the last the rest is no use

    def readers(self) -> dict[str, list[str]]:
        """Which targets share the statistics of which, by the name of the first of them."""
        if missing := [name for name in self._modules if name not in self._owner]:
            raise RecipeError(f"{missing[0]}: the calibration never reaches it; put it in exclude_modules.")
        found: dict[str, list[str]] = {}
        for name, owner in self._owner.items():
            found.setdefault(owner, []).append(name)
        return found

    def take(self, owner: str, readers: Sequence[str]) -> Factor | Tensor:
        """The factor of the inverse Hessian or the norms of the inputs ``[in]`` for ``readers``, which are not kept here."""
        target, what = self._targets[owner], "calibration statistics of its inputs"
        if target.criterion == "sparsegpt":
            group = None if target.pattern is None else target.pattern[1]
            refits = any(self._targets[name].reconstruct for name in readers)
            return factor_of(_finite(self._sums.pop(owner), owner, what), group, DAMPING, owner, refits=refits)
        return _finite(self._sums.pop(owner), owner, what).sqrt()

    def _looker(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features, target = args[0], self._targets[name]
            if features is not self._input:
                self._input, self._owner_of_input = features, {}
            owner = self._owner_of_input.setdefault((target.criterion, target.pattern), name)
            assert self._owner.setdefault(name, owner) == owner, "layers call their projections in one order"
            if owner == name:
                self._add(name, features)
            self._order.append(name)
            if self._stops and len(self._order) == len(self._modules):
                raise Stop

        return look

    def _add(self, name: str, features: Tensor) -> None:
        size, square = features.shape[-1], self._targets[name].criterion == "sparsegpt"
        if name not in self._sums:
            shape = (size, size) if square else (size,)
            self._sums[name] = torch.zeros(shape, dtype=torch.float32, device=features.device)
        kept = counted(name, features, self._mask_for(features))
        for start in range(0, len(kept), _ROWS):
            x = kept[start : start + _ROWS].float()
            if square:
                self._sums[name].addmm_(x.T, x)
            else:
                self._sums[name] += x.square().sum(dim=0)


def _stacks(model: Any, layers: Mapping[str, nn.Module]) -> list[dict[str, nn.Module]]:
    """``layers`` by stack, an encoder before its decoder."""
    found = []
    for _, stack in stacks_of(model, family_of(model, "calibration")):
        mine = {id(layer) for layer in stack}
        found.append({name: layer for name, layer in layers.items() if id(layer) in mine})
    return found


def _targets_in(layer: str, module: nn.Module, targets: Mapping[str, LayerTarget]) -> dict[str, Projection]:
    every = {f"{layer}.{name}": found for name, found in projections(module).items()}
    return {name: found for name, found in every.items() if name in targets}


def check_targets(model: Any, targets: Mapping[str, LayerTarget]) -> dict[str, dict[str, Projection]]:
    """The targets by layer; refuses, with a ``RecipeError``, what cannot be pruned layer by layer. Works on a model on meta."""
    if model.config.model_type not in FAMILIES:
        named = sorted({target.criterion for target in targets.values()})
        raise RecipeError(
            f"criterion {' and '.join(named)} goes layer by layer, and where the layers of model family "
            f"{model.config.model_type!r} are is not known (known: {', '.join(sorted(FAMILIES))}).\n"
            "Use criterion wanda with allocation: global, which scores all layers in one pass, or criterion magnitude."
        )
    layers = named_layers(model, family_of(model, "calibration"))
    inside = {layer: _targets_in(layer, module, targets) for layer, module in layers.items()}
    modules = {name: module for found in inside.values() for name, module in found.items()}
    for name, target in targets.items():
        if name not in modules:
            raise RecipeError(f"{name}: not a projection in a transformer layer; {target.criterion} goes layer by layer.")
        if target.criterion not in METHODS:
            raise RecipeError(
                f"{name}: criterion {target.criterion!r} does not go layer by layer; allowed: {', '.join(METHODS)}."
            )
        if (target.sparsity is None) == (target.pattern is None):
            raise RecipeError(f"{name}: sparsity {target.sparsity} and pattern {target.pattern}; give one of the two.")
        if target.pattern is not None:
            check_n_of_m(tuple(oriented(modules[name]).shape), *target.pattern, name=name)
    return inside


def _finite(values: Tensor, name: str, what: str) -> Tensor:
    bad = values.numel() - int(torch.isfinite(values).count_nonzero())
    if bad:
        raise NonFiniteError(
            f"{name}: {bad} of {values.numel()} {what} are NaN or infinite. Look at the calibration data or the weights."
        )
    return values
