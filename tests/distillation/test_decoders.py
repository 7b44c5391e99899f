"""Distillation of decoders beside encoders. What these prevent: a teacher that reads another text than its student, and the
encoder's padding taken for the decoder's, which goes unseen where both are of one length."""

import pytest
import torch
from transformers import T5ForConditionalGeneration

from hf_shrink import DistillationConfig, LossTerm
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError
from tests.tiny import tiny_config


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(tiny_config("t5")).eval()


def batch() -> dict[str, torch.Tensor]:
    """Two texts and two targets, all of six tokens: the first text has padding, and the second target."""
    ids = torch.randint(4, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, 4:], mask[0, 4:], labels[1, 3:] = 0, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_the_loss_is_the_mean_over_target_tokens_of_the_kl_after_the_same_start():
    """The second implementation: each pair by itself, unpadded, the start token put in front by hand."""
    student, teacher, inputs = model(0), model(1), batch()
    values = []
    for row, (text, target) in enumerate(((4, 6), (6, 3))):
        own = inputs["labels"][row : row + 1, :target]
        words = {"input_ids": inputs["input_ids"][row : row + 1, :text]}
        words["decoder_input_ids"] = torch.cat([torch.zeros(1, 1, dtype=torch.int64), own[:, :-1]], dim=1)
        p, q = (each(**words).logits.double().softmax(-1)[0] for each in (teacher, student))
        values += list((p * (p / q).log()).sum(-1))
    assert len(values) == 9
    config = DistillationConfig(alpha=1.0, losses=[LossTerm(loss="forward_kl")])
    distiller = Distiller(config, Teacher(teacher), student=student)
    assert distiller.positions(inputs).sum() == 9
    outputs = student(**inputs)
    found = distiller.mix(outputs.loss, outputs, inputs)
    torch.testing.assert_close(found.double(), torch.stack(values).mean(), rtol=1e-4, atol=1e-7)


def test_a_batch_that_says_nothing_of_the_decoder_is_refused():
    with pytest.raises(MismatchError, match="give batches with labels or decoder_input_ids"):
        Teacher(model(0)).outputs({"input_ids": torch.ones(1, 3, dtype=torch.int64)})
