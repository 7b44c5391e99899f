"""A model's own forward pass, where a training in 16 bits put another over it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_BEFORE = "_original_forward"


def is_wrapped(model: nn.Module) -> bool:
    """Whether accelerate left a forward pass that computes in 16 bits (``bf16: true``) whatever the weights are in."""
    return _BEFORE in vars(model)


def unwrap_forward(model: nn.Module) -> None:
    """Give ``model`` the forward pass of its class again, which is what a loaded model has; nothing where it has it."""
    for name in (_BEFORE, "forward") if is_wrapped(model) else ():
        vars(model).pop(name, None)


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` has the forward pass of its class; afterwards what was put over it."""
    over = {name: value for name, value in vars(model).items() if name in (_BEFORE, "forward") and is_wrapped(model)}
    unwrap_forward(model)
    try:
        yield
    finally:
        vars(model).update(over)
