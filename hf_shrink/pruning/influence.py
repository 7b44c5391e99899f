"""How much each layer changes what flows through it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_shrink.errors import RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.calibrate import evaluating, explained
from hf_shrink.pruning.forward import Forward


@torch.no_grad()
def block_influence(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """``1 - cos(x, y)`` of a layer's input ``x`` and output ``y``, mean over all tokens (arXiv:2403.03853, eq. 1).

    Positions that ``attention_mask`` marks as padding do not count, in a decoder those of ``decoder_attention_mask``.

    Args:
        model: of one of the known families; runs without dropout and is left as it was.
        batches: keyword arguments of its forward.

    Returns:
        Float64 ``[layers]``, no unit, 0 (the direction is as it came) to 2; for an encoder and its decoder the sum of both.

    Raises:
        RecipeError: no token counts.
    """
    stacks = [list(layers) for _, layers in stacks_of(model, family_of(model, "block_influence"))]
    sums = [torch.zeros(len(layers), dtype=torch.float64) for layers in stacks]
    counts = [torch.zeros(len(layers), dtype=torch.int64) for layers in stacks]
    forward = Forward(model, training_only=False)

    def see(stack: int, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        came = args[0] if args else kwargs["hidden_states"]
        left = output[0] if isinstance(output, tuple) else output
        before, mask = forward.layout(layer, came, f"layer {index}")
        cosine = F.cosine_similarity(before.double(), left.reshape(before.shape).double(), dim=-1)
        kept = cosine.flatten() if mask is None else cosine[mask]
        sums[stack][index] += (1 - kept).sum().cpu()
        counts[stack][index] += kept.numel()

    with evaluating(model), ExitStack() as hooks:
        forward.attach(hooks)
        for stack, layers in enumerate(stacks):
            for index, layer in enumerate(layers):
                hooks.callback(layer.register_forward_hook(partial(see, stack, index), with_kwargs=True).remove)
        for index, batch in enumerate(batches):
            with explained(model, batch, f"calibration batch {index}"):
                model(**{name: value.to(model.device) for name, value in batch.items()})
    if any(bool((count == 0).any()) for count in counts):
        raise RecipeError("calibration: no token of the batches counts; pass batches with an attention_mask that is not all 0.")
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)]).sum(dim=0)
