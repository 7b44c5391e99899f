"""Calls that transformers' users make of any model: with labels, copied, with other caches, with ids that are none."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_shrink import OnnxModel, QuantizationConfig, export_onnx
from hf_shrink.errors import MismatchError
from tests.tiny import tiny_config, tiny_inputs

IDS = tiny_inputs("bert")
MASKED = torch.tensor([[1, 2, 0, -100, -100], [0, 0, 2, 1, -100]])
CASES: dict[str, tuple[Any, str, dict[str, torch.Tensor]]] = {
    "classes": (AutoModelForSequenceClassification, "bert", {"labels": torch.tensor([2, 0])}),
    "number": (AutoModelForSequenceClassification, "bert", {"labels": torch.tensor([0.5, -1.0])}),
    "tokens": (AutoModelForTokenClassification, "bert", {"labels": MASKED}),
    "hidden words": (AutoModelForMaskedLM, "bert", {"labels": MASKED}),
    "words": (AutoModelForCausalLM, "gpt2", {"labels": IDS["input_ids"].masked_fill(IDS["attention_mask"] == 0, -100)}),
    "spans": (
        AutoModelForQuestionAnswering,
        "bert",
        {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([2, 9])},
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of a case and its float graph."""
    known: dict[str, tuple[Any, OnnxModel]] = {}

    def of(case: str) -> tuple[Any, OnnxModel]:
        if case not in known:
            auto, family, _ = CASES[case]
            torch.manual_seed(0)
            more = {"num_labels": 1} if case == "number" else {"num_labels": 3} if case in ("classes", "tokens") else {}
            model, folder = auto.from_config(tiny_config(family, layers=1, **more)).eval(), tmp_path_factory.mktemp("onnx")
            export_onnx(model, folder, QuantizationConfig(backend="onnx", float_graph=True))
            known[case] = model, OnnxModel.from_pretrained(folder, file="model.onnx")
        return known[case]

    return of


@pytest.mark.parametrize("case", CASES)
def test_labels_give_the_loss_that_the_model_gives(case: str, made: Any):
    """Evaluation loops pass labels: a loss of other tokens, or of the next one, would be believed."""
    model, graph = made(case)
    with torch.no_grad():
        expected = model(**IDS, **CASES[case][2])
    found = graph(**IDS, **CASES[case][2])
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys() and found.to_tuple()[0] is found.loss and "loss" not in graph(**IDS)


def test_labels_of_another_task_are_refused(made: Any):
    with pytest.raises(MismatchError, match=r"no loss of start_logits, end_logits from labels alone"):
        made("spans")[1](**IDS, labels=torch.tensor([0, 1]))
    with pytest.raises(MismatchError, match="from start_positions alone"):
        made("spans")[1](**IDS, start_positions=torch.tensor([0, 1]))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_model_of_its_own(how: Any, made: Any):
    """The session of ONNX Runtime can be neither copied nor pickled, and a TypeError told of it."""
    model = made("words")[1]
    again = how(model)
    assert type(again).__name__ == "GPT2LMHeadModel" and isinstance(again, OnnxModel) and not again.training
    assert again.config is not model.config and again.generation_config.to_dict() == model.generation_config.to_dict()
    torch.testing.assert_close(again(**IDS).logits, model(**IDS).logits, atol=0, rtol=0)


def test_a_cache_of_a_fixed_length_is_refused_in_words(made: Any):
    """ONNX Runtime's own words were of a Gather and an index."""
    model = made("words")[1]
    with pytest.raises(MismatchError, match=r"longer at each call; got StaticCache\.\nLeave cache_implementation out"):
        model.generate(**tiny_inputs("gpt2"), max_new_tokens=2, cache_implementation="static")


def test_a_token_below_zero_is_named(made: Any):
    """A graph counts it from the vocabulary's end and answers."""
    ids = IDS["input_ids"].clone()
    ids[1, 2] = -1
    with pytest.raises(MismatchError, match="input_ids: -1 in row 1"):
        made("classes")[1](input_ids=ids)


def test_a_lost_graph_is_found_when_a_copy_is_made(made: Any, tmp_path: Path):
    model = copy.copy(made("classes")[1])
    model.path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"model\.onnx: not a graph"):
        copy.deepcopy(model)
