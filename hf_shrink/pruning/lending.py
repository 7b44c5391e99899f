"""Weights that are there only while they are looked at, so that a model without any can be scored."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from torch import nn

Lend: TypeAlias = Callable[[Iterable[nn.Module]], AbstractContextManager[None]]
"""A context in which these modules have their weights. What no file holds stays on meta."""


def in_memory(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Modules that have their weights anyway."""
    return nullcontext()
