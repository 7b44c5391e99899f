"""Several processes at one run (``torchrun``, ``accelerate launch``): who leads, and how all come to know what it decided."""

import os
from typing import TypeVar

from hf_shrink.errors import RecipeError

T = TypeVar("T")


def is_leader() -> bool:
    """True in the one process that writes files; always, where there is one process."""
    return int(os.environ.get("RANK", "0")) == 0


def refuse_several_processes(what: str) -> None:
    """A RecipeError where this is one of several processes."""
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(f"{what}: trains in one process, and there are {count}; run it without torchrun.")


def agree(value: T) -> T:
    """The leader's value, in every process; all wait for each other here. With one process, ``value`` itself.

    Args:
        value: what the leader says, small and picklable; what others pass is ignored.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState()  # joins the process group, where nothing has yet
    said: list[T] = broadcast_object_list([value])
    return said[0]
