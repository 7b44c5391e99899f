"""Which parameters each mask covers: single weights of a projection, blocks of them, neurons, or attention heads."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_shrink.adapters import carries_adapter
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import FAMILIES, family_of, layers_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.masks import removed_count
from hf_shrink.pruning.pieces import Group, Piece
from hf_shrink.pruning.units import NOUNS, Kind, Units, kept_units, multiple_of, units_of
from hf_shrink.targets import Projection, check_patterns, matches, oriented, projections, select

ROUND_TO = 8
"""What kept widths are multiples of where nothing else is said; vectorised kernels like it."""


def groups_of(model: Any, configs: Sequence[PruningConfig], fractions: Mapping[str, float] | None = None) -> tuple[Group, ...]:
    """Every mask that ``configs`` ask for, in their order; works on a model on the meta device.

    Args:
        model: a transformers model.
        configs: entries that do not overlap. Those that are cut at once (layers, hidden, vocabulary) have no mask.
        fractions: by mask name, for ``allocation: sensitivity``; other masks take their entry's sparsity.

    Raises:
        RecipeError: a pattern names nothing, the family is not known, a tied weight, or two entries claim one weight.
        MismatchError: the model is quantised or carries an adapter, so that its weights cannot be removed one by one.
    """
    check_prunable(model)
    owners = _owners(model)
    found: list[Group] = []
    claims: dict[int, Group] = {}
    for place, config in named(configs):
        if config.is_cut_at_once:
            continue
        own = (fractions or {}) if config.allocation == "sensitivity" else {}
        for group in _groups(model, config, place, owners, own):
            for piece in group.pieces:
                _claim(claims, piece, group)
            found.append(group)
    _check_fractions(found, fractions)
    return tuple(found)


def _check_fractions(groups: Sequence[Group], fractions: Mapping[str, float] | None) -> None:
    """Each mask shared out by sensitivity has its fraction, and no fraction is for something else."""
    if fractions is None:
        return
    asked = {group.name for group in groups if group.config.allocation == "sensitivity"}
    if odd := sorted(asked.symmetric_difference(fractions)):
        what = "has no fraction" if odd[0] in asked else "is no mask of an entry with allocation: sensitivity"
        raise RecipeError(f"fractions: {odd[0]} {what}; give one for each of {len(asked)} masks.")
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise RecipeError(f"fractions: {name}: must be a number in [0, 1), got {fraction!r}.")


def _groups(
    model: Any, config: PruningConfig, entry: str, owners: Mapping[int, Sequence[str]], fractions: Mapping[str, float]
) -> list[Group]:
    if config.structure == "ffn" or config.structure == "heads":
        return _units(model, config.structure, config, entry, owners, fractions)
    return _entries(model, config, entry, owners, fractions)


def _entries(
    model: Any, config: PruningConfig, entry: str, owners: Mapping[int, Sequence[str]], fractions: Mapping[str, float]
) -> list[Group]:
    """One mask a projection, over its weights or blocks of them."""
    layers = projections(model)
    inside = layers if config.target_modules else {name: layers[name] for name in _inside(model, layers)}
    chosen = select(inside, config.target_modules, config.exclude_modules, entry)
    names = {f"{name}.weight" for name in chosen}
    found: dict[int, Group] = {}
    for name, module in chosen.items():
        if config.target_modules:
            _refuse_ties(module.weight, names, owners, entry)
        if id(module.weight) in found or not names.issuperset(owners[id(module.weight)]):
            continue
        grid, block = _grid(name, module, config, entry)
        piece = Piece(f"{name}.weight", module, "weight", "entry", block=block)
        found[id(module.weight)] = Group(name, entry, config, grid, _amount(name, grid, config, entry, fractions), (piece,))
    if not found:
        raise RecipeError(f"{entry}: every one of {len(chosen)} projections shares its weight with what is no target.")
    groups = list(found.values())
    if config.sparsity and not fractions and not any(group.removed for group in groups):
        raise RecipeError(
            f"{entry}.sparsity: {config.sparsity} removes none of the {groups[0].shape.numel()} {_noun(config)} of "
            f"{groups[0].name}, nor any elsewhere; raise sparsity{', or use smaller blocks' if config.block else ''}."
        )
    return groups


def _noun(config: PruningConfig) -> str:
    return "weights" if config.block is None else "blocks"


def _amount(name: str, grid: torch.Size, config: PruningConfig, entry: str, fractions: Mapping[str, float]) -> float | None:
    """The fraction that a projection loses in the end; never all of it, or what reads it would read nothing but zeros."""
    fraction, total = fractions.get(name, config.fraction), grid.numel()
    if fraction is None or config.allocation == "global" or removed_count(fraction, total) < total:
        return fraction
    if config.allocation == "sensitivity":
        return (total - 1) / total
    raise RecipeError(
        f"{entry}.sparsity: {name}: {fraction} removes {total} of {total} {_noun(config)}; at least 1 must stay.\n"
        f"Lower sparsity{', use smaller blocks' if config.block else ''}, or add it to exclude_modules."
    )


def _grid(name: str, module: Projection, config: PruningConfig, entry: str) -> tuple[torch.Size, tuple[int, int]]:
    """The shape of a projection's mask, and of the block that one entry of it stands for."""
    rows, columns = oriented(module).shape
    if config.pattern is not None and columns % config.pattern[1]:
        n, m = config.pattern
        raise RecipeError(
            f"{entry}.pattern: {name} has {columns} inputs {[rows, columns]}, which {m} does not divide; "
            f"choose another pattern than [{n}, {m}] or add it to exclude_modules."
        )
    high, wide = config.block or (1, 1)
    if rows % high or columns % wide:
        raise RecipeError(
            f"{entry}.block: {name} is {[rows, columns]}, which blocks of [{high}, {wide}] do not tile; "
            "choose a block that divides it or add it to exclude_modules."
        )
    return torch.Size([rows // high, columns // wide]), (high, wide)


def _units(
    model: Any,
    kind: Kind,
    config: PruningConfig,
    entry: str,
    owners: Mapping[int, Sequence[str]],
    fractions: Mapping[str, float],
) -> list[Group]:
    """One mask a feed-forward block or attention block."""
    every = units_of(model, family_of(model, f"{entry}.structure: {kind}"), kind)
    inside = [name for units in every for name in units.modules]
    check_patterns(inside, config.target_modules, f"{entry}.target_modules")
    check_patterns(inside, config.exclude_modules, f"{entry}.exclude_modules")
    found = [
        _unit_group(units, config, entry, fractions.get(units.name))
        for units in every
        if (not config.target_modules or _any_match(units.modules, config.target_modules))
        and not _any_match(units.modules, config.exclude_modules)
    ]
    for units in every:
        _refuse_parts(units, config, entry)
    if not found:
        blocks = "feed-forward blocks" if kind == "ffn" else "attention blocks"
        raise RecipeError(f"{entry}.exclude_modules: leaves 0 of {len(every)} {blocks}; remove a pattern.")
    for group in found:
        for piece in group.pieces:
            _refuse_ties(piece.parameter, {piece.name}, owners, entry)
    if config.allocation == "global":
        _refuse_uneven(found, entry)
    return found


def _refuse_uneven(groups: Sequence[Group], entry: str) -> None:
    """Where units leave in bundles of several sizes, the ones with the lowest scores may not add up to what is asked for."""
    multiple = groups[0].multiple
    for group in groups:
        if multiple > 1 and (group.multiple != multiple or group.shape.numel() % multiple):
            raise RecipeError(
                f"{entry}.allocation: global cannot end where it should: {group.name} has {group.shape.numel()} units in "
                f"multiples of {group.multiple}, {groups[0].name} has {groups[0].shape.numel()} in multiples of {multiple}; "
                "set round_to: 1, or allocation: uniform."
            )


def _refuse_parts(units: Units, config: PruningConfig, entry: str) -> None:
    """Heads that are the same in all layers leave all of them or none."""
    for field in ("target_modules", "exclude_modules"):
        patterns = getattr(config, field)
        alike: dict[str, set[bool]] = {}
        for name in units.modules if patterns else ():
            alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), set()).add(_any_match([name], patterns))
        if split := next((name for name, found in alike.items() if len(found) > 1), None):
            raise RecipeError(f"{entry}.{field}: names {split} in some layers only, but its heads are one in all; name all.")


def _unit_group(units: Units, config: PruningConfig, entry: str, fraction: float | None) -> Group:
    assert config.sparsity is not None
    sparsity, noun, round_to = config.sparsity if fraction is None else fraction, NOUNS[units.kind], config.round_to or ROUND_TO
    multiple = multiple_of(units.width, round_to)
    if units.kind == "heads" and round((1 - sparsity) * units.count) == 0:
        raise RecipeError(
            f"{entry}.sparsity: {units.owner}: {sparsity} removes {units.count} of {units.count} heads; at least 1 must stay."
        )
    kept = kept_units(units.count, sparsity=sparsity, multiple=multiple)
    if sparsity > 0 and kept == units.count and fraction is None:
        raise RecipeError(
            f"{entry}.round_to: sparsity {sparsity} keeps all {units.count} {noun} of {units.owner} after rounding to "
            f"multiples of {multiple}; lower round_to or raise sparsity."
        )
    ends_at = (units.count - kept) / units.count
    return Group(units.name, entry, config, torch.Size([units.count]), ends_at, units.pieces, multiple)


def _inside(model: Any, names: Collection[str]) -> list[str]:
    """The names inside the transformer layers, or inside the base model where the family is not known."""
    known = FAMILIES.get(model.config.model_type)
    roots = [model.base_model] if known is None else layers_of(model, known)
    modules = {id(module) for root in roots for module in root.modules()}
    return [name for name in names if id(model.get_submodule(name)) in modules]


def _any_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(matches(name, pattern) for name in names for pattern in patterns)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter the names it has in different modules; a module under two names counts once."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{attribute}" if name else attribute)
    return owners


def _refuse_ties(parameter: Tensor, allowed: Collection[str], owners: Mapping[int, Sequence[str]], entry: str) -> None:
    names = owners[id(parameter)]
    others = [name for name in names if name not in allowed]
    if others:
        raise RecipeError(
            f"{entry}.target_modules: {next(n for n in names if n in allowed)} is tied to {others[0]}, which would lose "
            "the same weights; add it to exclude_modules."
        )


def _claim(claims: dict[int, Group], piece: Piece, group: Group) -> None:
    before = claims.setdefault(id(piece.parameter), group)
    if before is not group:
        raise RecipeError(
            f"{before.entry} and {group.entry} both claim {piece.name.rpartition('.')[0]}; "
            f"add it to exclude_modules of one of them."
        )


def check_prunable(model: Any) -> None:
    """Refuse, with a ``MismatchError``, a model whose weights cannot be removed one by one: quantised, or with an adapter."""
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        method = getattr(model, "quantization_method", None)
        raise MismatchError(
            f"{type(model).__name__} is already quantised ({getattr(method, 'value', method) or 'integer weights'}): "
            "prune first, then quantise. Load it without quantization_config."
        )
    if carries_adapter(model):
        raise MismatchError(
            f"{type(model).__name__} carries an adapter, or the wrappers that delete_adapter() leaves around its layers.\n"
            "Of a PeftModel, merge_and_unload() and prune the result; else load the model again without it."
        )
    for name, module in projections(model).items():
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise MismatchError(
                f"{name}: its weight is computed from others (torch.nn.utils.prune or a parametrization).\n"
                "Call torch.nn.utils.prune.remove(module, 'weight') or remove_parametrizations(module, 'weight') first."
            )
