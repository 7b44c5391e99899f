"""Sums of several processes: added up where they are read, kept apart where they are saved, so that a resume is exact."""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

_SAME_EVERYWHERE = ("gradient_count", "gradient_sum", "squared_gradient_sum", "taylor_sum", "movement_sum")
"""From gradients that are averaged over ranks already."""
_SAMPLES = ("unit_samples", "labels")


def rank_and_count() -> tuple[int, int]:
    """This process among how many; ``(0, 1)`` where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def from_ranks(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each of ``sums`` as ``[ranks, ...]`` on the CPU, or ``[1, ...]`` where ranks have the same. All ranks have to call."""
    return {name: _gathered(name, value).cpu() for name, value in sums.items()}


def over_ranks(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``sums`` of all ranks together; samples one after the other, without empty rows. All ranks have to call."""
    gathered = {name: _gathered(name, value) for name, value in sums.items()}
    found = {name: value.sum(dim=0) for name, value in gathered.items() if name not in _SAMPLES}
    return found | {name: _filled(gathered[name], gathered["sample_count"]) for name in _SAMPLES if name in gathered}


def mine(gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of what ``from_ranks`` gave. With another number of ranks: all sums to the first, samples dealt."""
    rank, count = rank_and_count()
    found: dict[str, Tensor] = {}
    for name, value in gathered.items():
        if name in _SAME_EVERYWHERE:
            found[name] = value[0]
        elif len(value) == count:
            found[name] = value[rank]
        elif name in _SAMPLES:
            rows = _filled(value, gathered["sample_count"])[rank::count][: value.shape[1] // count]
            found[name] = torch.zeros_like(value[0])
            found[name][: len(rows)] = rows
            found["sample_count"] = torch.tensor(len(rows))
        elif name != "sample_count":
            found[name] = value.sum(dim=0) if rank == 0 else torch.zeros_like(value[0])
    return found


def _gathered(name: str, value: Tensor) -> Tensor:
    rank, count = rank_and_count()
    if count == 1 or name in _SAME_EVERYWHERE:
        return value.unsqueeze(0).clone()
    slots = torch.zeros(count, *value.shape, dtype=value.dtype, device=value.device)
    slots[rank] = value
    distributed.all_reduce(slots)
    return slots


def _filled(samples: Tensor, counts: Tensor) -> Tensor:
    return torch.cat([part[: int(count)] for part, count in zip(samples, counts, strict=True)])
