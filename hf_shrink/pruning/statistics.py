"""Statistics of weights and units that criteria read, recorded while a model runs, as state outside the model.

Of one weight ``[out, in]``, from the gradients that ``observe_gradients`` is shown:

- ``gradient``, ``squared_gradient``: mean over the observations of g and of g squared;
- ``taylor``: mean of ``(w * g)`` squared;
- ``movement``: sum of ``-w * g``.

Of the input features ``[in]`` of one projection, over all tokens that are no padding:

- ``input_norm`` (L2 norm), ``input_mean``, ``input_variance`` (mean squared distance from the mean).

Of the units that one projection reads, the features of a unit taken together:

- ``unit_norm``, ``unit_variance`` ``[units]``: L2 norm over tokens and features; sum of the features' variances;
- ``unit_taylor``, ``unit_fisher`` ``[units]``: mean over samples of the absolute and of the squared gradient of a gate that
  multiplies the unit's activations, which is the sum of ``a * dL/da`` over the sample's tokens and the unit's features; L is
  the sample's own loss (times 1 / number of tokens in a step, where the training loss is a mean over tokens);
- ``unit_samples`` ``[samples, units]``, ``labels`` ``[samples]``: mean activation over a sample's tokens and the unit's
  features, and the sample's class (int64), of the first 1,024 samples.

Given without data: ``key``, an int64 number that follows from the seed and the name. All others are float32.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_shrink.errors import IntegrityError, NonFiniteError, RecipeError
from hf_shrink.pruning.forward import Forward
from hf_shrink.pruning.gathering import from_ranks, mine, over_ranks, rank_and_count
from hf_shrink.pruning.sums import (
    FROM_GRADIENTS,
    FROM_INPUTS,
    FROM_PRODUCTS,
    FROM_SAMPLES,
    GIVEN,
    OF_UNITS,
    SAMPLES,
    add_gradient,
    add_inputs,
    add_products,
    add_samples,
    empty,
    read,
)
from hf_shrink.pruning.sums import Stats as Stats
from hf_shrink.pruning.sums import Watched as Watched
from hf_shrink.targets import oriented

_ACTIVATIONS = FROM_INPUTS | OF_UNITS
_COUNTS = ("gradient_count", "token_count", "product_count", "sample_count")


def key_of(name: str, seed: int = 0) -> Tensor:
    """The statistic ``key``: int64, the same in every process and run, another for each name and seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.tensor(int.from_bytes(digest[:8], "big") >> 1)


class Recorder:
    """Running statistics of named weights and units.

    One-shot: inside ``watching(model)``, for each batch a forward, a backward where ``wants_gradients``, and then
    ``observe_gradients()``. In training: ``observe_gradients()`` once an optimizer step, after clipping and the averaging over
    ranks. The rows of all micro-batches since the last call are one step: the gate gradients of ``unit_taylor`` and
    ``unit_fisher`` are multiplied by their number, so that a loss which is a mean over the step gives each sample's own,
    however the step is cut up.
    """

    def __init__(self, watched: Sequence[Watched]) -> None:
        """Start with nothing recorded.

        Args:
            watched: what is recorded, by unique names.
        """
        self._watched = {item.name: item for item in watched}
        assert len(self._watched) == len(watched), "two things with one name"
        self._beside: dict[str, Any] = {}
        self.reset()

    @property
    def wants_data(self) -> bool:
        """Whether anything has to be recorded before ``stats`` can be read."""
        return self._wants(frozenset().union(*(item.wanted for item in self._watched.values())) - GIVEN)

    @property
    def wants_gradients(self) -> bool:
        """Whether a backward has to follow each forward."""
        return self._wants(FROM_GRADIENTS | FROM_PRODUCTS)

    def reset(self) -> None:
        """Forget everything."""
        self._sums = {name: empty(item) for name, item in self._watched.items()}
        self._step: dict[str, dict[int, Tensor]] = {name: {} for name in self._watched}

    @contextmanager
    def watching(self, model: nn.Module, *, training_only: bool = False) -> Iterator[None]:
        """Record activations of ``model`` inside; the hooks come off even when its forward raises.

        Positions that ``attention_mask`` marks as padding do not count. Nothing is recorded outside of the model's forward,
        so that activations computed again for backward count once.

        Args:
            model: the model that holds what is watched, as it is called.
            training_only: leave out what the model does in eval mode, as in an evaluation during training.

        Raises:
            RecipeError: something watched is not in ``model``, or, in its forward, labels are needed and missing.
            MismatchError: in its forward, a mask that does not fit.
        """
        inside = {id(module) for module in model.modules()}
        if lost := [name for name, item in self._watched.items() if id(item.module) not in inside]:
            raise RecipeError(f"watching: {lost[0]} is no part of this {type(model).__name__}; make a Recorder of its modules.")
        with ExitStack() as stack:
            if self._wants(_ACTIVATIONS):
                forward = Forward(model, training_only=training_only, beside=self._beside)
                forward.attach(stack)
                for item in self._watched.values():
                    if item.wanted & _ACTIVATIONS:
                        hook = partial(self._see, item, forward)
                        stack.callback(item.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    @contextmanager
    def showing(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Inside, what the model is called without is read from ``batch``: who smooths labels keeps them from the model."""
        self._beside.update(batch)
        try:
            yield
        finally:
            self._beside.clear()

    @torch.no_grad()
    def observe_gradients(self, scale: float = 1.0, *, loss_scale: float = 1.0, skip_overflow: bool = False) -> bool:
        """Add the gradients of one step, between its last backward and the change of the weights.

        Args:
            scale: the weights' gradients are multiplied by this.
            loss_scale: what the loss was multiplied by for backward, as float16 training does; weights' gradients are taken
                to be free of it by now, those of activations never are.
            skip_overflow: leave out a step with gradients that are not finite, as a loss scaler does.

        Returns:
            Whether the step was recorded.

        Raises:
            RecipeError: a weight that takes no gradient, or no watched weight has one.
            NonFiniteError: a gradient is NaN or infinite; nothing of the step is recorded.
        """
        gradients = {n: self._gradient(item, scale) for n, item in self._watched.items() if item.wanted & FROM_GRADIENTS}
        step, self._step = self._step, {name: {} for name in self._watched}
        if gradients and all(found is None for found in gradients.values()):
            raise RecipeError("observe_gradients: no watched weight has a gradient; call it after backward.")
        products = {name: torch.cat(list(passes.values())) / loss_scale for name, passes in step.items() if passes}
        for name, found in (*gradients.items(), *products.items()):
            if found is not None and not bool(torch.isfinite(found).all()):
                if skip_overflow:
                    return False
                raise NonFiniteError(
                    f"{name}: gradients are NaN or infinite; nothing of this step is recorded. Look at the batch and the loss."
                )
        for name, found in gradients.items():
            weight = oriented(self._watched[name].module)
            add_gradient(self._here(name), weight, torch.zeros_like(weight) if found is None else found)
        for name, rows in products.items():
            add_products(self._here(name), rows * len(rows))
        return True

    def stats(self, name: str) -> Stats:
        """What a criterion reads, where the weight is; the same in every rank, which all have to ask for it.

        Raises:
            RecipeError: nothing has been recorded yet.
        """
        item = self._watched[name]
        sums = over_ranks(self._here(name))
        for count in _COUNTS:
            if count in sums and not int(sums[count]):
                needs = ", ".join(sorted(item.wanted - GIVEN))
                how = " and backward passes that reach it" if count in ("gradient_count", "product_count") else ""
                raise RecipeError(f"{name}: {needs}: nothing is recorded yet; it takes batches of data{how}.")
        found = read(item, sums)
        if "key" in item.wanted:
            found["key"] = key_of(name, item.seed)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Everything recorded, of all ranks, on the CPU by flat names; every rank has to ask. To be read between steps."""
        return {f"{name}/{part}": value for name in self._watched for part, value in from_ranks(self._here(name)).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave; with as many ranks as then, to the bit.

        Raises:
            IntegrityError: names are missing, unknown, or of another size or type; nothing has changed.
        """
        own = {f"{name}/{part}": value for name in self._watched for part, value in self._sums[name].items()}
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        odd = [n for n in own.keys() & state.keys() if (state[n].shape[1:], state[n].dtype) != (own[n].shape, own[n].dtype)]
        if missing or unknown or odd:
            raise IntegrityError(
                f"pruning statistics: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}, "
                f"{len(odd)} of another size {sorted(odd)[:3]}. They belong to another model or another pruning section."
            )
        for name, sums in self._sums.items():
            taken = mine({part: state[f"{name}/{part}"] for part in sums})
            self._sums[name] = {part: value.to(sums[part].device, copy=True) for part, value in taken.items()}
            self._step[name] = {}

    def _wants(self, names: frozenset[str]) -> bool:
        return any(item.wanted & names for item in self._watched.values())

    def _here(self, name: str) -> dict[str, Tensor]:
        """The sums where the weight is, since a Trainer moves the model after the Recorder was made."""
        device = self._watched[name].module.weight.device
        self._sums[name] = {part: value.to(device) for part, value in self._sums[name].items()}
        return self._sums[name]

    def _gradient(self, item: Watched, scale: float) -> Tensor | None:
        weight = item.module.weight
        if not weight.requires_grad:
            needs = ", ".join(sorted(item.wanted & FROM_GRADIENTS))
            raise RecipeError(f"{item.name}: {needs} needs gradients, but this weight takes none; unfreeze it or exclude it.")
        if weight.grad is None:
            return None  # the loss does not depend on it
        gradient = weight.grad if oriented(item.module) is weight else weight.grad.T
        return gradient.float() * scale

    def _see(self, item: Watched, forward: Forward, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if forward.current is None:
            return
        features = args[0] if args else next(iter(kwargs.values()))
        inputs, mask = forward.layout(module, features.detach(), item.name)
        sums = self._here(item.name)
        if "token_count" in sums:
            add_inputs(sums, inputs.flatten(0, 1) if mask is None else inputs[mask])
        if item.wanted & FROM_SAMPLES:
            labels = forward.current.labels(item.name)
            limit = SAMPLES // rank_and_count()[1]
            add_samples(sums, item.combine(_token_mean(inputs, mask)) / _features_each(item), labels, limit=limit)
        if item.wanted & FROM_PRODUCTS and torch.is_grad_enabled() and features.requires_grad:
            features.register_hook(partial(self._see_gradient, item, forward.current.number, inputs, mask))

    def _see_gradient(self, item: Watched, number: int, inputs: Tensor, mask: Tensor | None, gradient: Tensor) -> None:
        products = inputs.float() * gradient.detach().reshape(inputs.shape).float()
        if mask is not None:
            products = products * mask.unsqueeze(-1)
        passes = self._step[item.name]
        rows = item.combine(products.sum(dim=1, dtype=torch.float64))
        passes[number] = passes[number] + rows if number in passes else rows  # a module used twice has one gate


def _token_mean(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that count, ``[rows, in]``; 0 where none does."""
    if mask is None:
        return inputs.float().mean(dim=1)
    kept = torch.where(mask.unsqueeze(-1), inputs.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _features_each(item: Watched) -> int:
    assert item.units is not None
    return item.units[0] * item.units[2]
