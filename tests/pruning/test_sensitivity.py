"""Each mask alone, as pruning would cut it, and a model that nobody touched afterwards."""

import copy
import json
import math

import pytest
import torch
from rich.console import Console

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.measurement.compute import macs
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.masks import keep_top
from hf_shrink.pruning.scores import scores_of
from hf_shrink.pruning.sensitivity import sensitivity, whole_groups
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity, Words
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.surgery import shrink
from tests import tiny

FFN = PruningConfig(structure="ffn", sparsity=0.5)
HEADS = PruningConfig(structure="heads", sparsity=0.5)
ATTENTION = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]


class Closeness:
    """Minus the distance from the logits that the whole model had."""

    def __init__(self, model, family="bert"):
        self.inputs = tiny.tiny_inputs(family)
        self.aim = self.logits(model)

    def logits(self, model):
        with torch.no_grad():
            return model(**self.inputs).logits.double()

    def __call__(self, model):
        return -float((self.logits(model) - self.aim).norm())


def lively(name):
    """A classifier whose layers matter: weights as small as at the start of a training hardly change the logits."""
    model = tiny.tiny_classifier(name)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return model


def bits(model):
    return {name: value.clone().view(torch.int32) for name, value in model.state_dict().items() if value.is_floating_point()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
def test_a_point_is_the_model_physically_cut_and_its_parameters_are_those_that_left(name):
    """Biases or gates left standing would make a mask look cheaper than the model that is delivered."""
    model = lively(name)
    score, before = Closeness(model, name), bits(model)
    found = sensitivity(model, [FFN, HEADS], score)
    assert same(bits(model), before)
    groups = {group.name: group for group in groups_of(model, [FFN, HEADS])}
    assert found.by_group().keys() == groups.keys()
    for point in found.points:
        scores = scores_of(groups[point.group], {})
        small = shrink(model, {point.group: keep_top(scores, point.removed)})
        assert point.quality == pytest.approx(score(small), abs=1e-4)
        assert point.parameters == model.num_parameters() - small.num_parameters() > 0
        assert point.loss == found.dense - point.quality
    assert found.dense == 0 and max(point.loss for point in found.points) > 0.01


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_what_goes_is_rounded_as_pruning_rounds_it(fraction):
    """A curve measured at widths that pruning never leaves would be spent wrongly."""
    model = tiny.tiny_classifier("llama", ffn=100)
    entries = [{"structure": "ffn"}, {"structure": "unstructured", "target_modules": ["self_attn.q_proj"]}]
    found = sensitivity(model, [PruningConfig(sparsity=0.1, **e) for e in entries], lambda m: 0.0, fractions=[fraction])
    expected = groups_of(model, [PruningConfig(sparsity=fraction, **entry) for entry in entries])
    assert [(p.group, p.removed, p.entries) for p in found.points] == [(g.name, g.removed, g.shape.numel()) for g in expected]


def test_macs_are_what_the_projections_multiply_for_each_token():
    """A second count, by torch's own operation counter; heads also take their products between tokens with them."""
    model, length = tiny.tiny_classifier("bert"), 7
    found = sensitivity(model, [FFN, HEADS], lambda m: 0.0, fractions=[0.5])
    for point in found.points:
        mask = torch.arange(point.entries) >= point.removed
        gone = macs(model, length=length) - macs(shrink(model, {point.group: mask}), length=length)
        between = 2 * length * length * 8 * point.removed if point.structure == "heads" else 0
        assert gone == length * point.macs + between


def test_weights_come_back_to_the_bit_and_modes_too_when_the_score_fails():
    """A zero with a sign, a tie, or a stop half-way would leave another model than the one that was given."""
    model = tiny.tiny_classifier("bert").train()
    model.bert.encoder.layer[0].intermediate.dense.weight.data[0, :3] = torch.tensor([-0.0, 0.0, -1e-42])
    before, calls = bits(model), []

    def stop(m):
        calls.append(m.training)
        if len(calls) == 4:
            assert not same(bits(m), before), "nothing was removed"
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, [FFN], stop)
    assert same(bits(model), before) and model.training and model.bert.training
    assert calls == [False] * 4


def test_the_criterion_decides_what_goes_and_is_asked_of_the_whole_model():
    """Scores taken again while a mask is off would differ from those that pruning uses."""
    model, batch = tiny.tiny_classifier("bert"), tiny.tiny_inputs("bert")
    config = PruningConfig(structure="ffn", criterion="activation_norm", sparsity=0.5)
    score = Closeness(model)
    by_norm = sensitivity(model, config, score, calibration=[batch])
    by_weight = sensitivity(model, FFN, score)
    assert [p.removed for p in by_norm.points] == [p.removed for p in by_weight.points]
    assert [p.loss for p in by_norm.points] != [p.loss for p in by_weight.points]
    with pytest.raises(RecipeError, match=r"activation_norm needs batches of data; pass calibration"):
        sensitivity(model, config, score)
    with pytest.raises(RecipeError, match=r"magnitude needs none; leave out calibration"):
        sensitivity(model, FFN, score, calibration=[batch])


def test_zeros_have_their_curves_too_and_a_pattern_has_one_point():
    model = tiny.tiny_classifier("bert")
    configs = [
        PruningConfig(structure="unstructured", threshold=0.1, target_modules=["query"]),
        PruningConfig(structure="n_of_m", pattern=[2, 4], target_modules=["key"]),
        PruningConfig(structure="block", block=[8, 16], sparsity=0.5, target_modules=["value"]),
    ]
    found = sensitivity(model, configs, Closeness(model), fractions={f"pruning.{i}": [0.25, 0.75] for i in range(3)})
    first = [p for p in found.points if p.layer == 0]
    assert [(p.structure, p.removed, p.entries, p.parameters, p.macs) for p in first] == [
        ("unstructured", 256, 1024, 256, 256),
        ("unstructured", 768, 1024, 768, 768),
        ("n_of_m", 512, 1024, 512, 512),
        ("block", 2, 8, 256, 256),
        ("block", 6, 8, 768, 768),
    ]
    assert all(point.loss > 0 for point in found.points)


@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
def test_layers_are_those_of_the_model_and_one_part_has_one_name(name):
    """A plot with one line a layer needs both; T5's heads are the same in all layers of a stack."""
    groups = whole_groups(model := tiny.tiny_classifier(name), [FFN, HEADS])
    found = sensitivity(model, [FFN, HEADS], lambda m: 0.0, fractions=[0.5])
    assert len(found.points) == len(groups)
    for point in found.points:
        shared = name == "t5" and point.structure == "heads" and point.layer is None
        assert shared or point.kind.replace("*", str(point.layer), 1) == point.group != point.kind
    layers = [p.layer for p in found.points if p.structure == "ffn"]
    assert layers == [0, 1] * (2 if name == "t5" else 1)
    assert len({p.kind for p in found.points if p.structure == "ffn"}) == (2 if name == "t5" else 1)


def test_a_score_of_nothing_is_refused_and_weights_are_back():
    """Infinity minus infinity would be a loss of NaN, which sorts anywhere."""
    model, before = tiny.tiny_classifier("bert"), bits(tiny.tiny_classifier("bert"))
    with pytest.raises(NonFiniteError, match="score of the whole model is nan"):
        sensitivity(model, FFN, lambda m: math.nan)
    scores = iter([0.0, -math.inf])
    with pytest.raises(NonFiniteError, match=r"layer\.0:ffn without 16 is -inf"):
        sensitivity(model, FFN, lambda m: next(scores))
    assert same(bits(model), before)
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"layer\.1:ffn: 1 pruning scores"):
        sensitivity(model, FFN, lambda m: 0.0)


def test_what_cannot_be_measured_is_said():
    model = tiny.tiny_classifier("bert")
    with pytest.raises(RecipeError, match="no entry could be measured"):
        sensitivity(model, PruningConfig(structure="vocabulary", min_count=1), lambda m: 0.0)
    for fractions in ([], [0.5, 1.0], [0.0]):
        with pytest.raises(RecipeError, match="above 0 and below 1"):
            sensitivity(model, FFN, lambda m: 0.0, fractions=fractions)


def test_latency_is_of_smaller_models_and_zeros_save_none():
    """Timing masks instead of cuts would say that nothing saves time; timing zeros would count noise as savings."""
    model, configs = tiny.tiny_classifier("bert"), [FFN, PruningConfig(sparsity=0.5, target_modules=ATTENTION)]
    seen = []

    def latency(m):
        seen.append(m.num_parameters())
        return m.num_parameters() / 1000

    found = sensitivity(model, configs, lambda m: 0.0, latency=latency, fractions=[0.5])
    assert seen[0] == model.num_parameters() and found.milliseconds == seen[0] / 1000 and len(seen) == 3
    for point in found.points:
        assert point.milliseconds == pytest.approx(point.parameters / 1000 if point.structure == "ffn" else 0)


def test_only_the_entries_asked_for_are_measured():
    found = sensitivity(tiny.tiny_classifier("bert"), [FFN, HEADS], lambda m: 0.0, entries=["pruning.1"])
    assert {point.structure for point in found.points} == {"heads"}


def table():
    points = [
        Point("l.0:ffn", "ffn", "l.*:ffn", 0, f, int(8 * f), 8, 1 - loss, loss, 10, 9, others={"accuracy": 50.0})
        for f, loss in ((0.25, 0.1), (0.5, 0.3))
    ]
    words = Words("log-likelihood", "nats", "validation", 12)
    return Sensitivity(tuple(points), 1.0, words, {"accuracy": 80.0}, notes=("a note",))


def test_the_slope_is_quality_lost_per_fraction_removed():
    """By hand: (0.25 * 0.1 + 0.5 * 0.3) / (0.25^2 + 0.5^2) = 0.175 / 0.3125."""
    assert table().slopes() == {"l.0:ffn": pytest.approx(0.56)}


def test_a_result_reads_the_same_in_all_its_forms():
    """A number without its setting, or a table that drops a mask, is a claim nobody can check."""
    plain = json.loads(json.dumps(table().to_json()))
    assert plain["points"][1]["loss"] == 0.3 and plain["loss_per_fraction"] == {"l.0:ffn": pytest.approx(0.56)}
    assert plain["words"] == {"name": "log-likelihood", "unit": "nats", "setting": "validation", "samples": 12}
    header, ruler, row, blank, *notes = table().markdown().splitlines()
    assert row == "| l.0:ffn | 8 | +0.1000 (25.0 %) | +0.3000 (50.0 %) | +0.5600 |" and not blank
    assert header.count("|") == ruler.count("|") == row.count("|")
    said = ["- log-likelihood of the whole model: 1.0000 nats (accuracy 80)", "- setting: validation, 12 samples", "- a note"]
    assert notes == said
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table().rich())
    shown = console.export_text()
    assert all(part in shown for part in ("l.0:ffn", "+0.3000 (50.0 %)", "+0.5600", "a note", "12 samples"))


def test_several_scores_are_kept_and_the_first_counts():
    model = tiny.tiny_classifier("bert")
    whole = copy.deepcopy(model)
    found = sensitivity(model, FFN, lambda m: {"closeness": Closeness(whole)(m), "ten": 10.0}, fractions=[0.5])
    assert found.others == {"ten": 10.0} == found.points[0].others
    assert found.dense == 0 and found.points[0].loss > 0
