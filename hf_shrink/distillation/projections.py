"""From the student's width to the teacher's, where they differ: learnt with the student, never part of it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Projections(nn.Module):
    """One linear map without bias for each comparison of hidden states (the W of arXiv:1909.10351, equations 8 and 9).

    Args:
        names: of the comparisons.
        student: its width.
        teacher: its width. Equal widths need no map: states are compared as they are.
        seed: of the first weights; the global random generators are left alone.
    """

    def __init__(self, names: Iterable[str], student: int, teacher: int, *, seed: int = 0) -> None:
        super().__init__()
        self.maps = nn.ModuleDict()
        if student != teacher:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.maps.update({name: nn.Linear(student, teacher, bias=False) for name in names})

    def forward(self, name: str, hidden: Tensor) -> Tensor:
        """``hidden`` ``[..., student width]`` in the teacher's width, for the comparison ``name``."""
        return self.maps[name](hidden) if name in self.maps else hidden
