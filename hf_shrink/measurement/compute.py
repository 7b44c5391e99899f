"""Multiply-accumulates of one forward pass."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.inputs import random_inputs
from hf_shrink.measurement.subjects import Subject, at_rest, explained
from hf_shrink.measurement.values import Measurement
from hf_shrink.onnx_model import OnnxModel

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# torch's own table lacks the CPU kernel of scaled_dot_product_attention: attention would count as nothing.
_MORE_OPERATIONS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def compute(subject: Subject, config: MeasurementConfig) -> list[Measurement]:
    """MACs of one sequence of ``config.length`` tokens; nothing for a graph, whose products torch does not see."""
    if subject.model is None or isinstance(subject.model, OnnxModel):
        return []
    count = macs(subject.model, length=config.length)
    return [Measurement(name="macs", value=count, unit="MACs", setting=f"batch 1, {config.length} tokens")]


def macs(model: Any, *, length: int) -> int:
    """Multiply-accumulates of one forward pass at batch 1: matrix products and attention, nothing element by element.

    Causal attention counts in full. A quantised layer counts as the float product it stands for, whatever its kernel
    does, so quantising never changes the number.
    """
    inputs = random_inputs(model, batch_size=1, length=length)
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_OPERATIONS)
    with explained("counting MACs"), at_rest(model), _as_float_products(model), counter:
        model(**inputs)
    return int(counter.get_total_flops()) // 2


@contextlib.contextmanager
def _as_float_products(model: nn.Module) -> Iterator[None]:
    """Let every quantised layer multiply by zeros of its logical shape: same operation count, seen by the counter."""
    quantised = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.is_floating_point()]
    before = [module.__dict__.get("forward") for module in quantised]
    for module in quantised:
        module.__dict__["forward"] = _product(module)
    try:
        yield
    finally:
        for module, forward in zip(quantised, before, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def _product(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return F.linear(x, x.new_zeros(1).expand(module.out_features, module.in_features))

    return forward
