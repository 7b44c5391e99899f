"""What a student says itself: ends of rows in its own words, for the teacher to judge."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from hf_shrink.distillation.config import OnPolicyConfig
from hf_shrink.distillation.positions import IGNORED, SAMPLED
from hf_shrink.errors import MismatchError

_PACKED = ("cu_seq_lens_q", "seq_idx")
"""What else collators say of rows that hold several texts."""


def prompt_length(labels: Sequence[int], prompt_tokens: int | None) -> int:
    """How many tokens of a row the student is given; at least 1.

    Where some tokens have no label, as in chats of which only the assistant's part is learnt, all before the last labelled
    stretch; else ``prompt_tokens``, or half of the row.

    Args:
        labels: of the real tokens of a row, at least one.
        prompt_tokens: of the config.
    """
    learnt = [label != IGNORED for label in labels]
    if any(learnt) and not all(learnt[1:]):
        end = len(learnt) - learnt[::-1].index(True)
        return max(end - sum(1 for _ in takewhile(bool, learnt[end - 1 :: -1])), 1)
    return max(min(len(learnt) // 2 if prompt_tokens is None else prompt_tokens, len(learnt) - 1), 1)


def check_room(rows: Sequence[Sequence[int]], config: OnPolicyConfig, most: int | None) -> None:
    """A MismatchError where prompt and sample would not fit.

    Args:
        rows: labels of rows.
        config: how much is sampled.
        most: positions that the model knows; None where there is no limit.
    """
    prompt = max((prompt_length(labels, config.prompt_tokens) for labels in rows), default=0)
    if most is not None and prompt + config.max_new_tokens > most:
        raise MismatchError(
            f"distillation.on_policy: a prompt of {prompt} tokens and {config.max_new_tokens} new ones are more than the "
            f"student's {most} positions.\nLower max_new_tokens or prompt_tokens."
        )


@torch.no_grad()
def sampled(model: Any, batch: Mapping[str, Tensor], config: OnPolicyConfig, *, pad: int, seed: int) -> dict[str, Any]:
    """A batch whose rows go on from their prompts as ``model`` would.

    The mode of the model and the global random generators are as they were after. Sampling is plain, at
    ``config.temperature``: what the model's own generation config says about it does not count.

    Args:
        model: a causal language model of transformers, with or without adapters.
        batch: ``input_ids``, ``labels`` and, maybe, ``attention_mask``, ``[rows, length]`` each, padded on either side. Where
            several texts lie in one row and ``position_ids`` begin anew with each, each becomes a row of its own.
        config: how much, how warm.
        pad: id that fills up rows; never seen.
        seed: of the samples.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, padded on the right; only sampled tokens have a label. ``SAMPLED``
        marks it.

    Raises:
        MismatchError: no room for a sample, or texts in one row of which only attention kernels know where they begin.
    """
    ends, device = _ends(model), batch["input_ids"].device
    texts = [(row, _with_ends(row, labels, {pad, *ends})) for row, labels in _texts(batch)]
    check_room([labels for _, labels in texts], config, _positions(model))
    prompts = [row[: prompt_length(labels, config.prompt_tokens)] for row, labels in texts]
    longest = max(map(len, prompts))
    given = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    words = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0, "use_cache": True}
    plain = GenerationConfig(max_new_tokens=config.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad, **words)  # type: ignore[no-untyped-call]
    was_training = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _generating(model, plain):
        torch.manual_seed(seed)
        try:
            found = model.eval().generate(given, attention_mask=seen, generation_config=plain)
        finally:
            model.train(was_training)
    said = [_until(row, ends) for row in found[:, longest:].tolist()]
    width = max(len(prompt) + len(new) for prompt, new in zip(prompts, said, strict=True))
    made: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, new in zip(prompts, said, strict=True):
        gap = width - len(prompt) - len(new)
        made["input_ids"].append([*prompt, *new, *[pad] * gap])
        made["attention_mask"].append([1] * (len(prompt) + len(new)) + [0] * gap)
        made["labels"].append([IGNORED] * len(prompt) + new + [IGNORED] * gap)
    return {name: torch.tensor(values, device=device) for name, values in made.items()} | {SAMPLED: True}


@contextmanager
def _generating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """While it lasts, nothing else is said about generation; adapters hand on what they say to the model below."""
    both = [model, getattr(model, "get_base_model", lambda: model)()]
    before = [vars(each).get("generation_config") for each in both]
    try:
        for each in both:
            each.generation_config = config
        yield
    finally:
        for each, own in zip(both, before, strict=True):
            vars(each).pop("generation_config") if own is None else setattr(each, "generation_config", own)


def _texts(batch: Mapping[str, Tensor]) -> Iterator[tuple[list[int], list[int]]]:
    """The real tokens of each text, and their labels."""
    ids, labels, places = batch["input_ids"], batch["labels"], batch.get("position_ids")
    places = places if places is not None and places.ndim == 2 else None
    if places is None and (only := [name for name in _PACKED if name in batch]):
        raise MismatchError(
            f"distillation.on_policy: {only[0]!r} says that a row holds several texts, but not where each begins.\n"
            "Let the collator return position_ids, or give one text a row."
        )
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    for i, here in enumerate(real):
        row, known = ids[i][here].tolist(), labels[i][here].tolist()
        at = [] if places is None else places[min(i, len(places) - 1)][here].tolist()
        begins = [place for place, position in enumerate(at) if place and position <= at[place - 1]]
        for start, end in zip([0, *begins], [*begins, len(row)], strict=True):
            yield row[start:end], known[start:end]


def _with_ends(row: Sequence[int], labels: Sequence[int], ends: Container[int]) -> Sequence[int]:
    """The labels, with those of ends of text where these alone lack one: masked as padding, they make no chat."""
    filled = [token if token in ends else label for token, label in zip(row, labels, strict=True)]
    return labels if IGNORED in filled[1:] else filled


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end of text, that token included."""
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0] + 1] if stops else tokens


def _ends(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    found = model.config.eos_token_id if found is None else found
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


def _positions(model: Any) -> int | None:
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    return most
