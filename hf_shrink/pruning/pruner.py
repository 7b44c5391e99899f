"""The only state of pruning: masks and the statistics behind them, outside the model, whose checkpoints keep their names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.allocation import removed_in_each
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.lending import Lend, in_memory
from hf_shrink.pruning.masks import keep_top, pack, removed_count, unpack
from hf_shrink.pruning.pieces import Group
from hf_shrink.pruning.scores import scores_of, watched_of
from hf_shrink.pruning.selection import next_mask
from hf_shrink.pruning.statistics import Recorder
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.sums import FROM_GRADIENTS, GIVEN
from hf_shrink.pruning.window import window_of


def check_during(configs: Sequence[PruningConfig]) -> None:
    """Refuse, with a ``RecipeError``, entries that a training cannot follow."""
    for where, entry in named(configs):
        if entry.is_cut_at_once:
            raise RecipeError(
                f"{where}.structure: {entry.structure} is no mask that a training could follow. "
                "Cut it before (layers, hidden) or after (vocabulary); a recipe does."
            )
        if entry.when == "before":
            raise RecipeError(f"{where}.when: before is not during: call prune() first, or run a recipe, which does.")
        once = "reconstruct" if entry.reconstruct else "sparsegpt" if entry.criterion == "sparsegpt" else None
        if once is not None:
            raise RecipeError(f"{where}: {once} changes weights once, before training; set when: before.")


class Pruner:
    """Masks over a model's weights that follow their schedules.

    In a training loop: ``update(step)`` and ``apply()`` once before the first step and after every optimizer step,
    ``mask_gradients()`` before every optimizer step. Restore with ``load_state_dict`` and go on with the next ``update``.
    Where ``recorder`` is not None its hooks have to be on while the model trains, and it sees the gradients of each step.
    """

    def __init__(
        self,
        model: Any,
        configs: PruningConfig | Sequence[PruningConfig],
        total_steps: int,
        fractions: Mapping[str, float] | None = None,
        lend: Lend = in_memory,
    ) -> None:
        """Check everything and start with nothing removed.

        Args:
            model: a transformers model, not wrapped; its parameters are read and written where they live.
            configs: one entry or several that do not overlap.
            total_steps: optimizer steps of the whole training.
            fractions: what each mask of an entry with ``allocation: sensitivity`` loses, by the mask's name.
            lend: where the weights of a model on meta come from; masks are then made on the CPU, to be applied elsewhere.

        Raises:
            RecipeError: targets or schedules that cannot be meant.
            MismatchError: a model that cannot be pruned.
        """
        self._lend = lend
        entries = as_tuple(configs)
        masked = {place: config for place, config in named(entries) if not config.is_cut_at_once}
        self._windows = {entry: window_of(config, total_steps, entry) for entry, config in masked.items()}
        self._groups = groups_of(model, entries, fractions)
        self._masks = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in self._groups}
        watched = [item for group in self._groups for item in watched_of(group)]
        self.recorder = Recorder(watched) if watched else None
        for group in self._groups:
            _refuse_frozen(group)
            if any(item.wanted - GIVEN for item in watched_of(group)) and self._due(group, 0):
                raise RecipeError(
                    f"{group.entry}.begin_step: criterion {group.config.criterion} needs steps to record before the first "
                    "removal, at step 0; raise begin_step."
                )

    @property
    def groups(self) -> tuple[Group, ...]:
        """What the masks reach."""
        return self._groups

    def update(self, step: int) -> bool:
        """Bring the masks to what is in force after ``step`` optimizer steps; True where one changed.

        An entry once removed stays removed. Scores come from the weights of this moment and the statistics up to it.

        Raises:
            NonFiniteError: a score is NaN or infinite; all masks are as they were.
        """
        changed: dict[str, Tensor] = {}
        for entry in self._windows:
            due = [group for group in self._groups if group.entry == entry and self._due(group, step)]
            if due and due[0].config.allocation == "global":
                changed |= self._compete(due, step)
            else:
                changed |= {group.name: self._after(group, step) for group in due}
        self._masks.update(changed)
        return bool(changed)

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set every removed weight to zero, and its moments in ``optimizer``. A NaN stays one, or its cause is hidden."""
        for group in self._groups:
            for piece in group.pieces:
                spread = piece.spread(self._mask(group))
                piece.parameter.mul_(spread)
                for moment, zero in _moments(optimizer, piece.parameter):
                    moment.masked_fill_(~spread, zero) if zero else moment.mul_(spread)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradient of every removed weight to zero."""
        for group in self._groups:
            for piece in group.pieces:
                if piece.parameter.grad is not None:
                    piece.parameter.grad.mul_(piece.spread(self._mask(group)))

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks (True = keep) by name: ``[out, in]`` for a projection, ``[units]`` for what leaves whole."""
        found = {group.name: (group, self._mask(group).clone()) for group in self._groups}
        return {name: mask if g.config.makes_smaller else g.pieces[0].entries(mask) for name, (g, mask) in found.items()}

    def sparsity(self) -> dict[str, float]:
        """Fraction removed now, counted in the masks, for each entry (``pruning.0``): of weights, blocks or units."""
        gone: dict[str, int] = {}
        every: dict[str, int] = {}
        for group in self._groups:
            gone[group.entry] = gone.get(group.entry, 0) + self._gone(group)
            every[group.entry] = every.get(group.entry, 0) + group.shape.numel()
        return {entry: gone[entry] / every[entry] for entry in every}

    def final(self, step: int) -> bool:
        """True where the schedules ask for nothing more after ``step`` optimizer steps."""
        return all(step >= self._windows[group.entry].settled(group.sparsity) for group in self._groups)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, one bit an entry: uint8 tensors on the CPU by name. All else is the recorder's or the step's."""
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

    def _due(self, group: Group, step: int) -> bool:
        """Whether ``group`` may lose something at ``step``."""
        window = self._windows[group.entry]
        if group.sparsity is None:
            return window.is_open(step)
        if group.config.allocation == "global":
            if not window.is_open(step):
                return False
            groups = [other for other in self._groups if other.entry == group.entry]
            return sum(self._removed_at(g, step) for g in groups) > sum(self._gone(g) for g in groups)
        return self._removed_at(group, step) > self._gone(group)

    def _scores(self, group: Group, step: int) -> Tensor:
        stats = {} if self.recorder is None else {item.name: self.recorder.stats(item.name) for item in watched_of(group)}
        return _finite(scores_of(group, stats), group, step)

    def _after(self, group: Group, step: int) -> Tensor:
        with self._lend(piece.module for piece in group.weights):
            return self._next(group, self._scores(group, step), step)

    def _next(self, group: Group, scores: Tensor, step: int) -> Tensor:
        sparsity = None if group.sparsity is None else self._windows[group.entry].at(step, group.sparsity)
        return next_mask(group, scores, sparsity, self._mask(group))

    def _compete(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:
        scores = []
        for group in groups:
            with self._lend(piece.module for piece in group.weights):
                scores.append(self._scores(group, step))
        masks = [self._mask(group) for group in groups]
        removed = sum(self._removed_at(group, step) for group in groups)
        counts = removed_in_each(scores, masks, removed, [group.multiple for group in groups])
        return {
            group.name: keep_top(score, count, keep=mask)
            for group, score, count, mask in zip(groups, scores, counts, masks, strict=True)
        }

    def _gone(self, group: Group) -> int:
        mask = self._masks[group.name]
        return mask.numel() - int(mask.count_nonzero())

    def _removed_at(self, group: Group, step: int) -> int:
        assert group.sparsity is not None
        return removed_count(self._windows[group.entry].at(step, group.sparsity), group.shape.numel())

    def _mask(self, group: Group) -> Tensor:
        """The mask where the weights are, since a Trainer moves the model after the Pruner was made."""
        device = group.pieces[0].parameter.device
        if self._masks[group.name].device != device and device.type != "meta":
            self._masks[group.name] = self._masks[group.name].to(device)
        return self._masks[group.name]


def _refuse_frozen(group: Group) -> None:
    """What reads or makes gradients has nothing to go by where weights are not trained."""
    frozen = [piece.name for piece in group.weights if not piece.parameter.requires_grad]
    if frozen and group.config.penalty is not None:
        raise RecipeError(f"{group.entry}.penalty: {frozen[0]} is frozen, so a penalty changes nothing; remove one of the two.")
    watched = {item.module for item in watched_of(group) if item.wanted & FROM_GRADIENTS}
    for piece in group.weights:
        if piece.module in watched and not piece.parameter.requires_grad:
            raise RecipeError(
                f"{group.entry}.criterion: {group.config.criterion} reads gradients, but {piece.name} is frozen; "
                "train it, exclude it, or use another criterion."
            )


def _moments(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> list[tuple[Tensor, int]]:
    """What the optimizer remembers of each number of ``parameter``, and what says zero there.

    The 8-bit optimizers of bitsandbytes keep ``state1`` as places in the table ``qmap1``, whose first is near minus one.
    """
    if optimizer is None or parameter not in optimizer.state:
        return []
    state = optimizer.state[parameter]
    found = []
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
            table = None if value.is_floating_point() else state.get(f"qmap{name.removeprefix('state')}")
            if table is None and not value.is_floating_point():
                raise MismatchError(
                    f"{type(optimizer).__name__}: {name} is {value.dtype}, which masks cannot set to zero; use another `optim`."
                )
            found.append((value, 0 if table is None else int(table.abs().argmin())))
    return found


def _finite(scores: Tensor, group: Group, step: int) -> Tensor:
    bad = scores.numel() - int(torch.isfinite(scores).count_nonzero())
    if bad:
        names = ", ".join(piece.name for piece in group.pieces if not bool(torch.isfinite(piece.parameter).all()))
        raise NonFiniteError(
            f"{names or group.name}: {bad} of {scores.numel()} pruning scores are not finite at step {step}; masks unchanged. "
            "Lower the learning rate or repair the weights."
        )
    return scores
