"""Force the stock tier: pad layers of different shapes with zeros until a stock config can say them all."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.anatomy import Family
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.heads import fit_attributes, heads_of
from hf_shrink.lines import few
from hf_shrink.loading.save import record_shapes
from hf_shrink.loading.shapes import odd_head_dim, odd_shapes
from hf_shrink.measurement.inputs import longest, random_inputs
from hf_shrink.measurement.subjects import at_rest
from hf_shrink.pruning.pieces import Piece
from hf_shrink.pruning.surgery import say_in_config
from hf_shrink.pruning.units import NOUNS, Kind, Units, units_of
from hf_shrink.pruning.widths import is_accepted
from hf_shrink.quantization.embeddings import recorded_dtype

_LENGTH = 16
"""Tokens of the batch that outputs are compared on."""
_ROUNDING = 100
"""A sum over more zeros is added up in another order: outputs may differ by this many roundings of the largest of them."""


@dataclass(frozen=True)
class Padding:
    """What one kind of unit was padded to.

    Attributes:
        units: ``neurons`` or ``heads``; of queries that share keys and values, the key-value heads.
        before: how many each block had.
        after: how many all of them have now.
    """

    units: str
    before: tuple[int, ...]
    after: int


@dataclass(frozen=True)
class Cost:
    """What it took to do without the loader.

    Attributes:
        paddings: of neurons and of heads; none where a stock config could say the model as it was.
        parameters_before, parameters_after: each shared weight once.
        bytes_before, bytes_after: of those weights in memory.
        max_difference: largest absolute difference of the first output on one random batch.
    """

    paddings: tuple[Padding, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    max_difference: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Table:
        """A table for the terminal."""
        table = Table("", "before", "uniform", "cost")
        for padding in self.paddings:
            table.add_row(f"{padding.units} in each block", ", ".join(map(str, padding.before)), str(padding.after), "")
        for name in ("parameters", "bytes"):
            before, after = getattr(self, f"{name}_before"), getattr(self, f"{name}_after")
            table.add_row(name, f"{before:,}", f"{after:,}", f"{100 * (after - before) / before:+.1f}%")
        table.add_row("largest difference of an output", "", "", f"{self.max_difference:.3g}")
        return table


@torch.no_grad()
def uniform(model: PreTrainedModel, inputs: Mapping[str, Tensor] | None = None) -> tuple[PreTrainedModel, Cost]:
    """A copy that plain transformers can load, and what that costs.

    Feed-forward blocks are padded to the widest one with neurons whose weights are zero, attention blocks with heads whose
    weights are zero: to the most that any has where the config fixes the size of a head, else to hidden width / size of a head.
    What is added puts out zero and is read with weights of zero.

    Args:
        model: a float model with any shapes; stays as it is.
        inputs: a batch for the forward pass that checks it; None makes a random one.

    Raises:
        MismatchError: quantised, embeddings in int8, or shapes that zeros cannot bring into a stock config.
        RecipeError: shapes that differ in a family that is not known.
        IntegrityError: the outputs are not the same.
    """
    if recorded_dtype(model) == "int8":
        raise MismatchError(
            f"export --uniform of {type(model).__name__}: its embeddings lie in int8, which plain transformers cannot read.\n"
            "Make floats of them first: hf_shrink.dequantize(model)."
        )
    padded = copy.deepcopy(model)
    paddings: list[Padding] = []
    if odd_shapes(model) or odd_head_dim(model) is not None:
        where = f"export --uniform of {type(model).__name__}"
        if any(not parameter.is_floating_point() for parameter in model.parameters()):
            raise MismatchError(f"{where}: quantised weights cannot be padded. Export it in float, then quantise.")
        family = family_of(model, where)
        paddings = [*_pad(padded, family, "ffn", where), *_pad(padded, family, "heads", where)]
        fit_attributes(padded, family)
        say_in_config(padded, family)
        if rest := odd_shapes(padded):
            raise MismatchError(f"{where}: zeros in heads and neurons do not make these stock: {few(rest)}.")
    record_shapes(padded)
    cost = Cost(
        paddings=tuple(paddings),
        parameters_before=model.num_parameters(),
        parameters_after=padded.num_parameters(),
        bytes_before=_bytes(model),
        bytes_after=_bytes(padded),
        max_difference=_difference(model, padded, example_inputs(model) if inputs is None else inputs),
    )
    return padded, cost


def example_inputs(model: Any) -> dict[str, Tensor]:
    """One random sample that the forward pass of ``model`` takes: words, words and a decoder's words, or an image."""
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size
        high, wide = size if isinstance(size, list | tuple) else (size, size)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, config.num_channels, high, wide, generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    inputs = random_inputs(model, batch_size=1, length=min(_LENGTH, longest(model) or _LENGTH))
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        if isinstance(config.eos_token_id, int):  # a classifier reads the state at the end of the text
            inputs["input_ids"][:, -1] = config.eos_token_id
        inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    return inputs


def _pad(model: PreTrainedModel, family: Family, kind: Kind, where: str) -> list[Padding]:
    """Give all groups of ``kind`` as many units as the config can say, in place."""
    groups = units_of(model, family, kind)
    before = tuple(units.count for units in groups)
    after = max(before) if kind == "ffn" else _heads_to_say(model, family, groups, where)
    if set(before) == {after}:
        return []
    for units in groups:
        for piece in units.pieces:
            _append_zeros(piece, units.count, after)
    return [Padding(NOUNS[kind], before, after)]


def _heads_to_say(model: PreTrainedModel, family: Family, groups: Sequence[Units], where: str) -> int:
    """The least number of (key-value) heads that no block exceeds and that a config of this family can say."""
    most = max(units.count for units in groups)
    widths = {units.width for units in groups}
    if len(widths) > 1:
        raise MismatchError(f"{where}: heads, with the queries that share one, are {sorted(widths)} features wide; one can be.")
    width, hidden = widths.pop(), model.config.hidden_size
    if family.head_dim is None:
        if hidden % width or most * width > hidden:
            raise MismatchError(
                f"{where}: {most} heads of {width} features are not the hidden width of {hidden}, which a config of "
                f"{model.config.model_type!r} takes for granted. Save it as it is: it loads after `import hf_shrink`."
            )
        return int(hidden // width)
    stack, layers = stacks_of(model, family)[0]
    head_dim = heads_of(layers[0], stack.attentions[0]).head_dim
    for count in range(most, most + hidden + 1):  # some number at or above the hidden width divides or fits every rule
        words = {family.num_heads: count * width // head_dim, family.head_dim: head_dim}
        if is_accepted(model, words if family.num_kv_heads is None else words | {family.num_kv_heads: count}):
            return count
    raise MismatchError(f"{where}: a config of {model.config.model_type!r} takes no number of heads from {most} on.")


def _append_zeros(piece: Piece, before: int, after: int) -> None:
    """New units behind the old ones, in each of the blocks that hold them."""
    module, parameter, dim = piece.module, piece.parameter, piece.dim
    shape = parameter.shape
    runs = parameter.detach().reshape(*shape[:dim], piece.blocks, before * piece.inner, *shape[dim + 1 :])
    sizes = list(runs.shape)
    sizes[dim + 1] = (after - before) * piece.inner
    wide = torch.cat([runs, runs.new_zeros(sizes)], dim=dim + 1).flatten(dim, dim + 1)
    setattr(module, piece.attribute, nn.Parameter(wide, requires_grad=parameter.requires_grad))
    if piece.attribute == "bias":
        return
    if isinstance(module, nn.Embedding):
        module.embedding_dim = wide.shape[1]
    elif isinstance(module, Conv1D):
        module.nx, module.nf = wide.shape
    else:
        module.out_features, module.in_features = wide.shape


def _difference(model: PreTrainedModel, padded: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
    batch = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with at_rest(model), at_rest(padded):
        ours, theirs = model(**batch)[0].double(), padded(**batch)[0].double()
    difference = float((ours - theirs).abs().max())
    allowed = _ROUNDING * torch.finfo(model.dtype).eps * max(1.0, float(ours.abs().max()))
    if not difference <= allowed:  # a NaN is no small difference
        raise IntegrityError(f"uniform: outputs differ by up to {difference:.3g} after padding; {allowed:.3g} is rounding.")
    return difference


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
