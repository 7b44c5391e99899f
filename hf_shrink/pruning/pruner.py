"""The only state of pruning: the masks, outside the model, so that its checkpoints keep their names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_shrink.errors import IntegrityError, NonFiniteError
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.masks import keep_top, pack, removed_count, unpack
from hf_shrink.pruning.structures import Group, groups_of, scores_of
from hf_shrink.pruning.window import window_of


class Pruner:
    """Masks over a model's weights that follow their schedules.

    In a training loop: ``update(step)`` and ``apply()`` once before the first step and after every optimizer step,
    ``mask_gradients()`` before every optimizer step. Restore with ``load_state_dict`` and go on with the next ``update``.
    """

    def __init__(self, model: Any, configs: PruningConfig | Sequence[PruningConfig], total_steps: int) -> None:
        """Check everything and start with nothing removed.

        Args:
            model: a transformers model, not wrapped; its parameters are read and written where they live.
            configs: one entry or several that do not overlap.
            total_steps: optimizer steps of the whole training.

        Raises:
            RecipeError: targets or schedules that cannot be meant.
            MismatchError: a model that cannot be pruned.
        """
        entries = as_tuple(configs)
        self._windows = {f"pruning.{i}": window_of(c, total_steps, f"pruning.{i}") for i, c in enumerate(entries)}
        self._groups = groups_of(model, entries)
        self._masks = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in self._groups}

    def update(self, step: int) -> bool:
        """Bring the masks to what is in force after ``step`` optimizer steps; True where one changed.

        An entry once removed stays removed. Scores come from the weights of this moment.

        Raises:
            NonFiniteError: a score is NaN or infinite; all masks are as they were.
        """
        changed: dict[str, Tensor] = {}
        for group in self._groups:
            mask = self._mask(group)
            if self._removed_at(group, step) > mask.numel() - int(mask.count_nonzero()):
                scores = _finite(scores_of(group), group, step)
                changed[group.name] = keep_top(scores, self._sparsity_at(group, step), keep=mask)
        self._masks.update(changed)
        return bool(changed)

    @torch.no_grad()
    def apply(self) -> None:
        """Set every removed weight to zero. A NaN stays a NaN: hiding it would hide what made it."""
        for group in self._groups:
            for piece in group.pieces:
                piece.parameter.mul_(piece.spread(self._mask(group)))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradient of every removed weight to zero, so that the optimizer's moments of it fade."""
        for group in self._groups:
            for piece in group.pieces:
                if piece.parameter.grad is not None:
                    piece.parameter.grad.mul_(piece.spread(self._mask(group)))

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks (True = keep) by name: ``[out, in]`` for a projection, ``[neurons]`` for a layer."""
        return {group.name: self._mask(group).clone() for group in self._groups}

    def sparsity(self) -> dict[str, float]:
        """Fraction removed now, counted in the masks, for each entry (``pruning.0``): of weights, or of neurons for ffn."""
        kept: dict[str, int] = {}
        every: dict[str, int] = {}
        for group in self._groups:
            mask = self._masks[group.name]
            kept[group.entry] = kept.get(group.entry, 0) + int(mask.count_nonzero())
            every[group.entry] = every.get(group.entry, 0) + mask.numel()
        return {entry: (every[entry] - kept[entry]) / every[entry] for entry in every}

    def final(self, step: int) -> bool:
        """True where the schedules ask for nothing more after ``step`` optimizer steps."""
        return all(self._removed_at(group, step) == group.removed for group in self._groups)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, one bit an entry: uint8 tensors on the CPU by name. All else follows from the step."""
        return {name: pack(mask) for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks that ``state_dict`` gave.

        Raises:
            IntegrityError: names are missing, unknown, or of another size; all masks are as they were.
        """
        missing, unknown = sorted(self._masks.keys() - state.keys()), sorted(state.keys() - self._masks.keys())
        if missing or unknown:
            raise IntegrityError(
                f"pruning masks: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}. "
                "They belong to another model or another pruning section."
            )
        self._masks = {name: unpack(state[name], mask.shape, name=name) for name, mask in self._masks.items()}

    def _removed_at(self, group: Group, step: int) -> int:
        return removed_count(self._sparsity_at(group, step), group.shape.numel())

    def _sparsity_at(self, group: Group, step: int) -> float:
        return self._windows[group.entry].at(step, group.sparsity)

    def _mask(self, group: Group) -> Tensor:
        """The mask where the weights are, since a Trainer moves the model after the Pruner was made."""
        device = group.pieces[0].parameter.device
        if self._masks[group.name].device != device:
            self._masks[group.name] = self._masks[group.name].to(device)
        return self._masks[group.name]


def _finite(scores: Tensor, group: Group, step: int) -> Tensor:
    bad = scores.numel() - int(torch.isfinite(scores).count_nonzero())
    if bad:
        names = ", ".join(piece.name for piece in group.pieces if not bool(torch.isfinite(piece.parameter).all()))
        raise NonFiniteError(
            f"{names or group.name}: {bad} of {scores.numel()} pruning scores are not finite at step {step}; masks unchanged. "
            "Lower the learning rate or repair the weights."
        )
    return scores
