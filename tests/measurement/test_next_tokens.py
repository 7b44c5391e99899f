"""Perplexity. What these prevent: counting padding, the first token, or ignored labels; an interval of something else."""

import math

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.metrics import Perplexity, score
from hf_shrink.measurement.next_tokens import NextTokens, judge_next_tokens
from hf_shrink.measurement.quality import quality
from hf_shrink.measurement.remarks import remarks
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.values import Report
from tests.tiny import tiny_causal_lm

IDS = [[2, 5, 8, 9, 3], [2, 6], [7, 12, 11, 3, 2, 4, 9]]
LABELS = [[2, 5, 8, -100, 3], [2, 6], [7, 12, 11, 3, 2, 4, 9]]


def data() -> Dataset:
    return Dataset.from_dict({"input_ids": IDS, "labels": LABELS})


def by_hand(model, ids, labels) -> tuple[float, list[int], list[int]]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    kept = [t for t in range(1, len(ids)) if labels[t] != -100]
    nll = -sum(float(logits[t - 1, labels[t]]) for t in kept)
    return nll, [int(logits[t - 1].argmax()) for t in kept], [labels[t] for t in kept]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_block_is_judged_as_if_it_were_alone_and_in_its_place(family: str, batch_size: int):
    model = tiny_causal_lm(family)
    found = judge_next_tokens(model, data(), batch_size=batch_size)
    expected = [by_hand(model, *row) for row in zip(IDS, LABELS, strict=True)]
    np.testing.assert_allclose(found.nll, [nll for nll, _, _ in expected], rtol=1e-5)
    assert found.tokens.tolist() == [3, 1, 6]
    assert found.best.tolist() == [i for _, best, _ in expected for i in best]
    assert found.labels.tolist() == [i for _, _, true in expected for i in true]


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    """The law: all tokens alike, so as many choices as there are tokens."""
    model = tiny_causal_lm("gpt2")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = judge_next_tokens(model, data())
    assert score(Perplexity, found.nll, found.tokens) == pytest.approx(model.config.vocab_size)


def test_perplexity_is_an_evaluate_metric_over_tokens_not_over_blocks():
    """A mean of the blocks' perplexities would weigh a short block like a long one."""
    assert issubclass(Perplexity, evaluate.Metric)
    nll, tokens = np.array([3 * math.log(2), 1 * math.log(32)]), np.array([3, 1])
    assert score(Perplexity, nll, tokens) == pytest.approx(4.0)


def test_a_nan_weight_is_found():
    """NaNs have an argmax like any other: the model would get a score."""
    model = tiny_causal_lm("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = float("nan")
    with pytest.raises(NonFiniteError):
        judge_next_tokens(model, data())


def test_data_without_anything_to_predict_is_refused():
    with pytest.raises(MismatchError, match="no token to predict"):
        judge_next_tokens(tiny_causal_lm("gpt2"), Dataset.from_dict({"input_ids": [[5]], "labels": [[5]]}))
    with pytest.raises(MismatchError, match="no column 'labels'"):
        judge_next_tokens(tiny_causal_lm("gpt2"), data().remove_columns("labels"))


def answers(nats: list[float], best: list[int]) -> NextTokens:
    """Twenty blocks of two tokens each."""
    return NextTokens(np.array(nats), np.full(20, 2), np.array(best), np.arange(40))


def test_ratio_agreement_and_remark_say_that_lower_is_better():
    """Twice the nats a token, e against e squared: worse, and said to be."""
    generator = np.random.default_rng(0)
    base = answers([2.0 + x for x in generator.normal(0, 0.1, 20)], list(range(40)))
    own = answers([4.0 + x for x in generator.normal(0, 0.1, 20)], [*range(30), *[0] * 10])
    bench = Bench((Subject("teacher", predictions=base), Subject("student", predictions=own)), MeasurementConfig(bootstrap=300))
    first, second = quality(bench)
    found = {m.name: m for m in second}
    assert found["perplexity"].value == pytest.approx(math.exp(own.nll.sum() / 40))
    assert found["perplexity_ratio"].value == pytest.approx(found["perplexity"].value / first[0].value)
    low, high = found["perplexity_ratio"].interval
    assert 1 < low < found["perplexity_ratio"].value < high
    assert found["next_token_agreement"].value == found["next_token_accuracy"].value == pytest.approx(75.0)
    assert "perplexity_recovery" not in found and "perplexity_difference" not in found
    reports = [Report(name=n, measurements=tuple(m)) for n, m in (("teacher", first), ("student", second))]
    assert any(line.startswith("student: perplexity (lower is better) is 2.") for line in remarks(reports))
    turned = [Report(name=n, measurements=tuple(m)) for n, m in (("teacher", second[:1]), ("student", first[:1]))]
    assert not [line for line in remarks(turned) if "perplexity" in line]


def test_a_model_against_itself_has_the_ratio_one_without_width():
    """Only paired draws give it."""
    same = answers([2.0 + 0.01 * i for i in range(20)], list(range(40)))
    bench = Bench((Subject("a", predictions=same), Subject("b", predictions=same)), MeasurementConfig(bootstrap=100))
    found = {m.name: m for m in quality(bench)[1]}
    assert found["perplexity_ratio"].interval == (1.0, 1.0) and found["next_token_agreement"].interval == (100.0, 100.0)


def test_other_tokens_are_not_compared():
    """A perplexity over other tokens, such as those of another tokenizer, is no better or worse."""
    one, other = answers([2.0] * 20, list(range(40))), NextTokens(np.array([2.0]), np.array([2]), np.arange(2), np.arange(2))
    bench = Bench((Subject("a", predictions=one), Subject("b", predictions=other)), MeasurementConfig(bootstrap=100))
    assert {m.name for m in quality(bench)[1]} == {"perplexity", "next_token_accuracy"}
