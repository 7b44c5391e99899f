"""Distillation of spans. What these prevent: padding that counts as a place, and one end that counts and the other not."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForQuestionAnswering

from hf_shrink import DistillationConfig, LossTerm
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError
from tests.tiny import tiny_config


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = BertForQuestionAnswering(tiny_config("bert")).eval()
    made.qa_outputs.weight.data *= 30  # so that places differ in more than rounding
    return made


def batch(padding: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 7 and 5 tokens."""
    ids = torch.randint(4, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    ids, mask = F.pad(ids, (0, padding)), F.pad(mask, (0, padding))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "start_positions": torch.tensor([1, 2]),
        "end_positions": torch.tensor([3, 2]),
    }


def mixed(loss: str, teacher, inputs: dict[str, torch.Tensor], **more) -> torch.Tensor:
    config = DistillationConfig(alpha=1.0, losses=[LossTerm(loss=loss, **more)])
    distiller = Distiller(config, teacher, student=model(0))
    outputs = model(0)(**inputs)
    return distiller.mix(outputs.loss, outputs, inputs)


def test_the_loss_is_the_mean_over_rows_and_ends_of_the_kl_over_real_tokens():
    """The second implementation: row by row, end by end, padding cut off."""
    inputs, teacher, temperature = batch(), model(1), 2.0
    ours, theirs = model(0)(**inputs), teacher(**inputs)
    values = []
    for row, length in enumerate((7, 5)):
        for end in ("start_logits", "end_logits"):
            p = (theirs[end][row, :length].double() / temperature).softmax(-1)
            q = (ours[end][row, :length].double() / temperature).softmax(-1)
            values.append(temperature**2 * (p * (p / q).log()).sum())
    found = mixed("forward_kl", Teacher(teacher), inputs, temperature=temperature)
    torch.testing.assert_close(found.double(), torch.stack(values).mean(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "total_variation", "soft_cross_entropy", "decoupled_kd"])
def test_more_padding_changes_no_loss_and_gradients_stay_numbers(loss: str):
    found = mixed(loss, Teacher(model(1)), batch())
    torch.testing.assert_close(mixed(loss, Teacher(model(1)), batch(padding=4)), found, rtol=1e-5, atol=1e-7)
    found.backward()
    assert found.isfinite()


def test_several_teachers_and_hidden_states_teach_spans_too():
    both = Ensemble([Teacher(model(1)), Teacher(model(1))])
    torch.testing.assert_close(mixed("forward_kl", both, batch()), mixed("forward_kl", Teacher(model(1)), batch()))
    config = DistillationConfig(alpha=1.0, losses=[LossTerm(loss="hidden_mse")])
    distiller, inputs = Distiller(config, Teacher(model(1)), student=model(0)), batch()
    outputs = model(0)(**inputs, output_hidden_states=True)
    assert distiller.mix(outputs.loss, outputs, inputs) > 0


def test_a_loss_that_padding_would_thin_out_is_refused():
    with pytest.raises(MismatchError, match="places in a text"):
        mixed("logit_mse", Teacher(model(1)), batch())
