"""The precision that a training multiplies in, and that its teachers share."""

import os
from collections.abc import Mapping
from typing import Any

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What accelerate's words for mixed precision mean; others do without autocast."""


def autocast_of(words: Mapping[str, Any]) -> torch.dtype | None:
    """What a ``training`` section computes in beside float32, or else what ``accelerate launch`` was told; None for nothing."""
    said = next((word for word in AUTOCAST if words.get(word)), os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    return AUTOCAST.get(said)


def autocast_key(precision: torch.dtype | None) -> dict[str, str]:
    """What a cache is known by where teachers answered under autocast."""
    return {} if precision is None else {"autocast": str(precision).removeprefix("torch.")}
