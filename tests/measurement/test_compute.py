"""MACs against formulas worked out by hand."""

import pytest

from hf_shrink.measurement.compute import macs
from tests.measurement.quantised import quantised
from tests.tiny import FAMILIES, tiny_classifier

HIDDEN, FFN, LAYERS, LABELS, TOKENS = 32, 64, 2, 3, 16


def layers_by_hand(tokens: int) -> int:
    """Four projections and two of the feed-forward for each token; scores and their sum for each pair of tokens."""
    return LAYERS * (tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN) + 2 * tokens * tokens * HIDDEN)


def test_bert_matches_the_formula():
    """torch's counter does not know the attention kernel of the CPU: it would count attention as nothing."""
    head = HIDDEN * HIDDEN + HIDDEN * LABELS  # pooler and classifier see one token
    assert macs(tiny_classifier("bert"), length=TOKENS) == layers_by_hand(TOKENS) + head


def test_gpt2_matches_the_formula():
    """GPT-2's transposed projections are no nn.Linear; its task head scores every token."""
    assert macs(tiny_classifier("gpt2"), length=TOKENS) == layers_by_hand(TOKENS) + TOKENS * HIDDEN * LABELS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_kernel_does_not_change_the_number(family):
    """Two models that differ only in how attention is computed do the same work."""
    eager, sdpa = (tiny_classifier(family) for _ in range(2))
    eager.set_attn_implementation("eager")
    sdpa.set_attn_implementation("sdpa")
    assert macs(eager, length=TOKENS) == macs(sdpa, length=TOKENS) > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_does_not_change_the_number(bits):
    """Kernels of bitsandbytes are unknown to the counter: a quantised model would seem to compute almost nothing."""
    model, small = quantised(bits)
    expected = macs(model, length=TOKENS)
    assert macs(small, length=TOKENS) == expected > 1_000_000
    assert all("forward" not in module.__dict__ for module in small.modules()), "the model leaves as it came"
    assert not small.training


def test_counting_leaves_modes_and_outputs_alone():
    """A model put to sleep by a measurement would train on without dropout."""
    model = tiny_classifier("bert").train()
    model.bert.embeddings.eval()
    macs(model, length=TOKENS)
    assert model.training and model.classifier.training and not model.bert.embeddings.training
