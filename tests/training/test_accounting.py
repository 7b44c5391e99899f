"""Counting labels and asking models, against what their sources say."""

import pytest
import torch

from hf_shrink.training.accounting import honours_count, labels_kept, predicts_next_token
from tests.tiny import FAMILIES, tiny_causal_lm, tiny_classifier

IDS = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]])
LABELS = torch.tensor([[2, 5, 9, 3], [2, 7, 3, -100]])


def test_labels_are_counted_by_hand():
    """One label too many and every gradient is a little too small."""
    assert int(labels_kept({"labels": LABELS}, shifts_labels=False)) == 7
    assert int(labels_kept({"labels": LABELS}, shifts_labels=True)) == 5
    assert int(labels_kept({"labels": LABELS, "shift_labels": LABELS[:, 1:]}, shifts_labels=True)) == 5
    assert int(labels_kept({"labels": torch.tensor([1, -100, 0])}, shifts_labels=False)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classification_head_is_found_out_whatever_it_does(family):
    """Taking the argument is not using it: the loss itself must tell."""
    model = tiny_classifier(family).train()
    batch = {"input_ids": IDS, "labels": torch.tensor([0, 2])}
    with torch.no_grad():
        model.eval()
        few, many = (float(model(**batch, num_items_in_batch=count).loss) for count in (2, 4))
        model.train()
    assert few in (pytest.approx(many, rel=1e-5), pytest.approx(2 * many, rel=1e-5))
    assert honours_count(model, batch) == (few > 1.5 * many)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_head_divides_by_the_count(family):
    """Rescaling it a second time would shrink the gradient."""
    assert honours_count(tiny_causal_lm(family), {"input_ids": IDS, "labels": LABELS})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("honours", [True, False])
def test_a_last_bit_is_no_division(dtype, honours):
    """Some devices give another one at every call: the gradient would be off by the number of micro-batches."""

    class Jitters(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = torch.nn.Parameter(torch.zeros(1)), 0

        def forward(self, num_items_in_batch):
            self.calls += 1
            loss = torch.tensor(0.695, dtype=dtype)
            loss = torch.nextafter(loss, torch.ones((), dtype=dtype)) if self.calls % 2 else loss
            return {"loss": loss * 10 / num_items_in_batch if honours else loss}

    assert honours_count(Jitters(), {}) == honours


@pytest.mark.parametrize("mode", [True, False])
def test_asking_leaves_no_trace(mode):
    """A random number drawn, or a model left in evaluation mode, makes the run another one."""
    model = tiny_classifier("bert").train(mode)
    before = torch.get_rng_state()
    honours_count(model, {"input_ids": IDS, "labels": torch.tensor([0, 2])})
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training == mode for module in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_whose_logits_are_about_the_next_token(family):
    """GPT-2's language model sets no loss type: unshifted, it would be taught the token it has just read."""
    model = tiny_causal_lm(family)
    assert predicts_next_token(model) and not predicts_next_token(tiny_classifier(family))
    logits = model(input_ids=IDS).logits
    shifted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(model(input_ids=IDS, labels=LABELS).loss, shifted)
