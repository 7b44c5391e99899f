"""Which layer gets how many bits: spend bytes where they save the most loss, a convex hull a layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store a layer.

    Attributes:
        bits: 4, 8, or 16 for the floats it has.
        bytes: of its weight in the file, with scales.
        kl: what the model loses where only this layer is stored so, in nats.
    """

    bits: int
    bytes: int
    kl: float


@dataclass(frozen=True)
class Step:
    """A layer becomes larger and the model better: from ``old`` to ``new``."""

    layer: str
    old: Option
    new: Option

    @property
    def worth(self) -> float:
        """Nats saved a byte."""
        return (self.old.kl - self.new.kl) / (self.new.bytes - self.old.bytes)


def cheapest(options: Mapping[str, Sequence[Option]]) -> dict[str, Option]:
    """Every layer in its fewest bytes."""
    return {layer: min(found, key=lambda option: (option.bytes, option.kl)) for layer, found in options.items()}


def steps(options: Mapping[str, Sequence[Option]]) -> list[Step]:
    """The steps up the lower convex hull of each layer's (bytes, kl), the one that saves the most a byte first.

    On a hull a later step is never worth more than an earlier one of its layer, so any number of steps from the start is a
    choice of one option a layer; of all choices in as many bytes it has the least sum of losses (the linear relaxation of the
    multiple-choice knapsack: Sinha and Zoltners 1979).
    """
    found = [step for layer, each in options.items() for step in _hull(layer, each)]
    return sorted(found, key=lambda step: -step.worth)


def spend(options: Mapping[str, Sequence[Option]], most: int) -> dict[str, Option]:
    """The option of each layer that the greedy knapsack chooses.

    Steps are taken in order of worth; one that does not fit ends its layer, and smaller ones of others may still fit. The sum
    of losses is above the best possible one by less than what the first step that did not fit would have saved.

    Args:
        options: one or more a layer.
        most: bytes of all layers together; below the cheapest choice nothing is spent and that choice comes back.
    """
    chosen = cheapest(options)
    left = most - sum(option.bytes for option in chosen.values())
    for step in steps(options):
        cost = step.new.bytes - step.old.bytes
        if chosen[step.layer] == step.old and cost <= left:
            chosen[step.layer] = step.new
            left -= cost
    return chosen


def path(options: Mapping[str, Sequence[Option]]) -> Iterator[dict[str, Option]]:
    """The choices from the cheapest one on, a step at a time."""
    chosen = cheapest(options)
    yield dict(chosen)
    for step in steps(options):
        chosen[step.layer] = step.new
        yield dict(chosen)


def _hull(layer: str, options: Sequence[Option]) -> Iterator[Step]:
    here, *larger = sorted(options, key=lambda option: (option.bytes, option.kl))
    while better := [Step(layer, here, option) for option in larger if option.bytes > here.bytes and option.kl < here.kl]:
        best = max(better, key=lambda step: (step.worth, step.new.bytes))
        yield best
        here = best.new
