"""A Trainer some of whose batches go on in the student's own words."""

from random import Random
from typing import Any

import torch

from hf_shrink.distillation.config import OnPolicyConfig
from hf_shrink.distillation.positions import IGNORED, SAMPLED
from hf_shrink.distillation.samples import sampled
from hf_shrink.errors import RecipeError
from hf_shrink.training.pruned import PruningTrainer


class SamplingTrainer(PruningTrainer):
    """Replaces batches by samples of the student, each decided by seed, step and place alone."""

    on_policy: OnPolicyConfig | None = None

    def set_on_policy(self, config: OnPolicyConfig | None, *, is_causal: bool, is_live: bool) -> None:
        """What part of the batches to come is sampled.

        Raises:
            RecipeError: no model that generates, or no teacher who could judge.
        """
        if config is not None and not (is_causal and hasattr(self.student, "generate")):
            name = type(self.student).__name__
            raise RecipeError(f"distillation.on_policy: {name} does not continue texts; it needs a causal language model.")
        if config is not None and not is_live:
            raise RecipeError("distillation.on_policy: a cache knows nothing of what the student says; use a live teacher.")
        self.on_policy = config

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As in ``Trainer``; the count is of the labels that are left, since a sample has no right answer."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.on_policy is None or not batches:
            return batches, count
        batches = [self._perhaps_sampled(batch, place) for place, batch in enumerate(batches)]
        given = [
            {"labels": torch.full_like(batch["labels"], IGNORED) if batch.get(SAMPLED) else batch["labels"]}
            for batch in batches
        ]
        if count is not None:
            count = torch.as_tensor(self._get_num_items_in_batch(given, device)).clamp(min=1)
        return batches, count

    def _perhaps_sampled(self, batch: dict[str, Any], place: int) -> dict[str, Any]:
        assert self.on_policy is not None
        draw = Random(f"{self.args.seed} {self.state.global_step} {place} {self.args.process_index}")
        if draw.random() >= self.on_policy.mix:
            return batch
        tensors = {name: value.to(self.args.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        pad = getattr(self.processing_class, "pad_token_id", None)
        with self.compute_loss_context_manager():
            return sampled(self.student, tensors, self.on_policy, pad=0 if pad is None else pad, seed=draw.getrandbits(63))
