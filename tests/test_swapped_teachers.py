"""Teacher and student mistaken for each other in a recipe. What these prevent: a student that learns nothing new."""

from pathlib import Path

import pytest

from hf_shrink.errors import MismatchError
from hf_shrink.plan import make_plan
from tests.project import UNUSED
from tests.test_cached_runs import recipe, several
from tests.test_taught_runs import TRAINING, make
from tests.tiny import VOCABULARY, tiny_classifier


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"start": "{}"}, r"'base' \([\d,]+ parameters\) is the student itself, of which nothing is pruned"),
        ({"start": "{layers: 3}"}, "is the student itself"),
        ({"start": "{start: teacher}", "teacher": f"{{model: base, training: {TRAINING}}}"}, "is the student itself"),
        ({"start": "{}", "more": "pruning: [{sparsity: 0.5, end_step: 2}]"}, None),
        ({"start": "{layers: 2}"}, None),
        ({"start": "{}", "teacher": f"{{model: base, training: {TRAINING}}}"}, None),
    ],
)
def test_a_teacher_that_is_the_student_is_refused_and_its_own_dense_start_is_not(
    words: dict, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its loss is 0 from the first step: the run pays for a teacher and learns nothing."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    shape = {"layers": 3, "hidden": 64, "ffn": 128, "vocab_size": len(VOCABULARY) + UNUSED}
    tiny_classifier(**shape).save_pretrained("base")
    chosen = recipe(**{"teacher": "{model: base}", "cache": "null"} | words)
    if says is None:
        make_plan(chosen)
        return
    with pytest.raises(MismatchError, match=says):
        make_plan(chosen)


def test_a_teacher_smaller_than_its_student_is_refused_with_names_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two names in the wrong order: the run makes the larger model worse."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    several(tmp_path, layers=1)
    says = r"'base' has [\d,]+ parameters outside its embeddings, more than its teacher's [\d,]+ \('two'\)"
    with pytest.raises(MismatchError, match=says):
        make_plan(recipe(teacher="{model: two}", cache="null"))
    make_plan(recipe(teacher="[{model: two}, {model: one}]", cache="null"))
    make_plan(recipe(teacher="{model: two}", cache="null", start="{layers: 1}"))
