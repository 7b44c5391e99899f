"""Which parameters one mask covers: single weights of a projection, or the neurons of a feed-forward block."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import FAMILIES, Family, family_of, layers_of, named_layers
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.criteria import CRITERIA
from hf_shrink.pruning.masks import removed_count
from hf_shrink.tables import pick
from hf_shrink.targets import Projection, check_patterns, matches, oriented, projections, select

Axis: TypeAlias = Literal["entry", "output", "input"]
"""What one mask entry is in a parameter: one number, one output (a row and its bias), or one input (a column)."""


@dataclass(frozen=True)
class Piece:
    """One parameter that a mask reaches; it is read from the module each time, since training may replace it."""

    name: str
    module: Projection
    attribute: Literal["weight", "bias"]
    axis: Axis

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        found = getattr(self.module, self.attribute)
        assert isinstance(found, nn.Parameter)
        return found

    def spread(self, mask: Tensor) -> Tensor:
        """A view of ``mask`` that broadcasts over the parameter as the module stores it."""
        if self.attribute == "bias":
            return mask
        wide = mask if self.axis == "entry" else mask.view(-1, 1) if self.axis == "output" else mask.view(1, -1)
        return wide if oriented(self.module) is self.module.weight else wide.T


@dataclass(frozen=True)
class Group:
    """One mask and everything it reaches.

    Attributes:
        name: the projection (unstructured) or the layer (ffn), by full module name; also the mask's name in checkpoints.
        entry: the config it comes from, as in ``pruning.0``.
        config: that config.
        shape: of the mask: ``[out_features, in_features]``, or ``[neurons]``.
        sparsity: the fraction that the schedule ends at: the config's, for ffn after rounding to a width.
        pieces: the parameters that the mask reaches.
    """

    name: str
    entry: str
    config: PruningConfig
    shape: torch.Size
    sparsity: float
    pieces: tuple[Piece, ...]

    @property
    def removed(self) -> int:
        """Entries that are gone when the schedule has ended, an exact count."""
        return removed_count(self.sparsity, self.shape.numel())


def groups_of(model: Any, configs: Sequence[PruningConfig]) -> tuple[Group, ...]:
    """Every mask that ``configs`` ask for, in their order; works on a model on the meta device.

    Raises:
        RecipeError: a pattern names nothing, the family is not known, a tied weight, or two entries claim one weight.
        MismatchError: the model is quantised or carries an adapter, so that its weights cannot be removed one by one.
    """
    _check_prunable(model)
    owners = _owners(model)
    found: list[Group] = []
    claims: dict[int, Group] = {}
    for index, config in enumerate(configs):
        make = _ffn if config.structure == "ffn" else _unstructured
        for group in make(model, config, f"pruning.{index}", owners):
            for piece in group.pieces:
                _claim(claims, piece, group)
            found.append(group)
    return tuple(found)


def scores_of(group: Group) -> Tensor:
    """Float scores of the mask's shape; a neuron's is the sum over its row in each ``ffn_in`` and its column in ``ffn_out``.

    Biases are removed with their neuron but not scored: a criterion compares weights, and a bias has no input. Sums are taken
    in float64, so that rounding in thousands of additions does not decide between neurons.
    """
    function = pick(CRITERIA, group.config.criterion, f"{group.entry}.criterion").function
    weights = [piece for piece in group.pieces if piece.attribute == "weight"]
    if group.config.structure == "unstructured":
        return function(oriented(weights[0].module), {})
    total = torch.zeros(group.shape, dtype=torch.float64, device=weights[0].parameter.device)
    for piece in weights:
        total += function(oriented(piece.module), {}).sum(dim=1 if piece.axis == "output" else 0, dtype=torch.float64)
    return total


def kept_neurons(width: int, *, sparsity: float, round_to: int) -> int:
    """The multiple of ``round_to`` nearest to ``(1 - sparsity) * width``; never below ``round_to`` nor above ``width``."""
    if sparsity == 0.0:
        return width
    return min(max(round((1.0 - sparsity) * width / round_to), 1) * round_to, width)


def _unstructured(model: Any, config: PruningConfig, entry: str, owners: Mapping[int, Sequence[str]]) -> list[Group]:
    every = projections(model)
    candidates = every if config.target_modules else {name: every[name] for name in _inside(model, every)}
    chosen = select(candidates, config.target_modules, config.exclude_modules, entry)
    names = {f"{name}.weight" for name in chosen}
    found: dict[int, Group] = {}
    for name, module in chosen.items():
        if config.target_modules:
            _refuse_ties(module.weight, names, owners, entry)
        if id(module.weight) in found or not names.issuperset(owners[id(module.weight)]):
            continue
        piece = Piece(f"{name}.weight", module, "weight", "entry")
        found[id(module.weight)] = Group(name, entry, config, oriented(module).shape, config.sparsity, (piece,))
    if not found:
        raise RecipeError(f"{entry}: every one of {len(chosen)} projections shares its weight with what is no target.")
    return list(found.values())


def _ffn(model: Any, config: PruningConfig, entry: str, owners: Mapping[int, Sequence[str]]) -> list[Group]:
    family = family_of(model, f"{entry}.structure: ffn")
    layers = named_layers(model, family)
    blocks = {name: [f"{name}.{path}" for path in (*family.ffn_in, family.ffn_out)] for name in layers}
    inside = [name for block in blocks.values() for name in block]
    check_patterns(inside, config.target_modules, f"{entry}.target_modules")
    check_patterns(inside, config.exclude_modules, f"{entry}.exclude_modules")
    found = [
        _ffn_group(name, layers[name], family, config, entry)
        for name, block in blocks.items()
        if (not config.target_modules or _any_match(block, config.target_modules))
        and not _any_match(block, config.exclude_modules)
    ]
    if not found:
        raise RecipeError(f"{entry}.exclude_modules: leaves 0 of {len(blocks)} feed-forward blocks; remove a pattern.")
    for group in found:
        for piece in group.pieces:
            _refuse_ties(piece.parameter, {piece.name}, owners, entry)
    return found


def _ffn_group(name: str, layer: nn.Module, family: Family, config: PruningConfig, entry: str) -> Group:
    pieces: list[Piece] = []
    for path in family.ffn_in:
        module = projections(layer)[path]
        pieces.append(Piece(f"{name}.{path}.weight", module, "weight", "output"))
        if module.bias is not None:
            pieces.append(Piece(f"{name}.{path}.bias", module, "bias", "output"))
    reader = projections(layer)[family.ffn_out]
    width = oriented(reader).shape[1]
    kept = kept_neurons(width, sparsity=config.sparsity, round_to=config.round_to)
    if config.sparsity > 0 and kept == width:
        raise RecipeError(
            f"{entry}.round_to: sparsity {config.sparsity} keeps all {width} neurons of {name} after rounding to multiples "
            f"of {config.round_to}; lower round_to or raise sparsity."
        )
    pieces.append(Piece(f"{name}.{family.ffn_out}.weight", reader, "weight", "input"))
    return Group(name, entry, config, torch.Size([width]), (width - kept) / width, tuple(pieces))


def _inside(model: Any, names: Collection[str]) -> list[str]:
    """The names inside the transformer layers, or inside the base model where the family is not known."""
    known = FAMILIES.get(model.config.model_type)
    root = model.base_model if known is None else layers_of(model, known)
    modules = {id(module) for module in root.modules()}
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


def _check_prunable(model: Any) -> None:
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        method = getattr(model, "quantization_method", None)
        raise MismatchError(
            f"{type(model).__name__} is already quantised ({getattr(method, 'value', method) or 'integer weights'}): "
            "prune first, then quantise. Load it without quantization_config."
        )
    if getattr(model, "peft_config", None):
        raise MismatchError(f"{type(model).__name__} carries an adapter: call merge_and_unload() and prune the result.")
