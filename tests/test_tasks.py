"""The tables of tasks agree. What this prevents: a task that a recipe may name and a room does not know."""

from typing import get_args

import pytest
import transformers

from hf_shrink import Recipe
from hf_shrink.data.config import DataConfig
from hf_shrink.data.tasks import FORMATS
from hf_shrink.measurement.gate import KINDS
from hf_shrink.measurement.judges import JUDGES
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.scores import AGREEMENTS, SCORES
from hf_shrink.tasks import TASKS, task_of
from tests.tiny import tiny_config


def test_every_table_has_every_task():
    assert set(TASKS) == set(FORMATS) == set(JUDGES) == set(KINDS) == {*get_args(Recipe.model_fields["task"].annotation)}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_model_of_each_task_is_known_again_by_its_class(name: str):
    """A folder is measured as what its config says: as another task its head would be made up."""
    task = TASKS[name]
    family = {"causal-lm": "gpt2", "seq2seq": "t5"}.get(name, "bert")
    model = getattr(transformers, task.auto_class).from_config(tiny_config(family, problem_type=task.problem_type))
    assert task_of(type(model).__name__, model.config.problem_type) == name


def test_a_classifier_that_does_not_say_of_what_kind_has_one_class_a_text_and_a_headless_model_gives_vectors():
    assert task_of("BertForSequenceClassification") == "text-classification"
    assert task_of("BertModel") == "sentence-embedding" and task_of("") is None


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_keys_of_each_task_exist_and_its_columns_come_from_them(name: str):
    """A key that no section has could be named in a refusal, and never be set."""
    assert TASKS[name].data_keys <= DataConfig.model_fields.keys()
    config = DataConfig(dataset="d")
    read = set(FORMATS[name](config).columns().all.values())
    assert read and read <= {getattr(config, key) for key in TASKS[name].data_keys}


@pytest.mark.parametrize("score", SCORES, ids=lambda score: f"{score.of.__name__}-{score.name}")
def test_every_score_has_its_row_and_those_of_its_changes(score):
    """A measurement without a row has no label, no direction, and no place in the table."""
    known = rows()
    lower = score.change == "ratio"
    assert known[score.name].hub and known[score.name].better == ("lower" if lower else "higher")
    changes = ["ratio"] if lower else ["difference", "recovery"]
    assert all(known[f"{score.name}_{change}"].better == known[score.name].better for change in changes)
    assert known[score.name].remark and all(name in known for name in AGREEMENTS)
