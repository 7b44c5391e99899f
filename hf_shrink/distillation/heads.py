"""The last product of a language model: find it, be sure nothing else touches its result, and put another in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PROBE_TOKENS = 8


def plain_head(model: Any, input_ids: Tensor, *, own_loss: bool) -> nn.Linear | None:
    """The ``nn.Linear`` whose results are the logits of ``model`` as they are, or None.

    None where the head is an adapter, quantised or hooked, where the logits are scaled or capped after it, and, with
    ``own_loss``, where the model's loss is more than the cross-entropy of the next token. Told by one forward in evaluation
    mode over a few tokens; mode and random generators are as they were after.

    Args:
        model: a causal language model, with or without adapters around it, on the device of the ids.
        input_ids: ``[batch, length]``; the first tokens of the first row are used.
        own_loss: whether the model's own loss is to be replaced as well.
    """
    head = getattr(model, "get_base_model", lambda: model)().get_output_embeddings()
    if type(head) is not nn.Linear or head._forward_hooks or "forward" in vars(head) or head.weight.device != input_ids.device:
        return None
    ids, logits = input_ids[:1, :_PROBE_TOKENS], []
    if ids.shape[-1] < 2:
        return None
    mode, devices = model.training, [ids.device] if ids.device.type == "cuda" else []
    handle = head.register_forward_hook(lambda _module, _args, result: logits.append(result))
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            outputs = model.eval()(input_ids=ids, **{"labels": ids} if own_loss else {}, use_cache=False, return_dict=True)
    finally:
        handle.remove()
        model.train(mode)
    if len(logits) != 1 or logits[0].shape[:-1] != ids.shape or not torch.equal(outputs.logits, logits[0]):
        return None
    if not own_loss:
        return head
    expected = F.cross_entropy(logits[0][0, :-1].float(), ids[0, 1:])
    return head if torch.allclose(outputs.loss.float(), expected, rtol=1e-4) else None


@contextmanager
def forward_as(head: nn.Linear, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, ``head`` answers with ``function`` of what it reads; its weights stay where they are."""
    head.forward = function  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
