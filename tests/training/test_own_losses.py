"""A loss of one's own, passed as a function. What these prevent: a mean inside it that lets padding count, an option it never
gets, a run that cannot say by what it was trained."""

import json
from pathlib import Path

import pytest
import torch

from hf_shrink import DistillationConfig, LossTerm, PruningConfig, Recipe, run
from hf_shrink.distillation.losses import Loss
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.errors import RecipeError
from hf_shrink.plan import make_plan
from tests.distillation.references import inputs_for
from tests.project import make_project
from tests.training.runs import gradient_norms, history, model_for, same, trainer_for, weights


def own_kl(student, teacher, temperature=1.0):
    """forward_kl once more, by its definition."""
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1)


def crosswise(student, teacher, *, labels):
    """Reads the right class."""
    return (student - teacher).gather(-1, labels[..., None]).square()[..., 0]


def between_states(student, teacher):
    return (student - teacher).square().mean(-1)


def own_scores(weight, stats):
    return weight.abs().sqrt()


def trained(loss, folder, *, family="bert", task="classification", temperature=1.0, **words):
    config = DistillationConfig(alpha=0.7, losses=(LossTerm(loss=loss, temperature=temperature),))
    more = {"teacher": model_for(family, task, seed=5, dropout=False), "distillation": config}
    trainer = trainer_for(family, task, folder, more=more, dropout=False, **words)
    with gradient_norms(trainer) as norms:
        trainer.train()
    return trainer, norms


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "lm")])
def test_a_function_trains_as_the_entry_of_the_same_formula_whatever_the_micro_batches(family, task, tmp_path):
    """Rows are ragged, and a language model streams: a function must be reduced, masked and cut up like the table's own."""
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    whole = {"per_device_train_batch_size": 14}
    found = {}
    for key, loss, words in (("own", own_kl, whole), ("cut", own_kl, cut), ("table", "forward_kl", whole)):
        trainer, norms = trained(loss, tmp_path, family=family, task=task, temperature=2.0, rows=14, max_steps=2, **words)
        name = "loss/forward_kl" if key == "table" else "loss/own_kl"
        found[key] = [*norms, *(e[name] for e in history(trainer) if "loss" in e)]
        assert (getattr(trainer, "_heads", None) is not None) == (task == "lm")
    assert min(found["own"]) > 1e-4
    assert found["own"] == pytest.approx(found["table"], rel=1e-4) and found["cut"] == pytest.approx(found["own"], rel=1e-4)


def test_labels_and_layers_reach_a_loss_that_asks_for_them(tmp_path):
    """An option that never arrives leaves a default at work, or a loss on layers on the first pair alone."""
    trainer, norms = trained(crosswise, tmp_path, max_steps=1)
    assert norms[0] > 1e-4 and trainer.state.log_history[0]["loss/crosswise"] > 0
    states = Loss(between_states, reads="hidden", layers="uniform")
    runs = [trained(loss, tmp_path, max_steps=2)[0] for loss in (states, "hidden_mse")]
    assert same(*(weights(each.model) for each in runs))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda s, t: own_kl(s, t).mean(), r"gave \[\] for outputs \[4, 3\]; allowed: \[4\]"),
        (lambda s, t: (s - t).square(), r"gave \[4, 3\]"),
        (lambda s, t: own_kl(s.detach(), t), "no gradient reaches the student"),
        (lambda s, t: own_kl(s, t).sum().item(), "gave float"),
    ],
    ids=["mean", "each output", "detached", "number"],
)
def test_what_is_not_one_number_a_position_with_a_gradient_is_refused(loss, message, tmp_path):
    with pytest.raises(RecipeError, match=message) as error:
        trained(loss, tmp_path, max_steps=1)
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("loss", "words", "message"),
    [
        (lambda s: s.sum(-1), {}, "takes \\(s\\)"),
        (lambda s, t, width: s, {}, "takes \\(s, t, width\\)"),
        (lambda s, t, temperature=4.0: s, {}, "default temperature 4.0 would be ignored"),
        (lambda s, t: s, {"temperature": 2.0}, "temperature: would be ignored"),
        (Loss(own_kl, takes=frozenset({"heat"})), {}, "'heat'; allowed: beta, labels, temperature"),
        (Loss(own_kl, reads="hidden"), {}, "of which layers"),
        (7, {}, "got 7; pass a name, a Loss or a function"),
        ("my_losses.own_kl", {}, "cannot carry a function of your own"),
    ],
)
def test_what_could_not_be_called_as_it_is_meant_is_refused_where_it_is_written(loss, words, message):
    """An option that does nothing looks like one that does not help."""
    with pytest.raises(RecipeError, match=message):
        LossTerm(loss=loss, **words)


def test_half_precision_comes_as_float32_and_the_teacher_without_gradient():
    """In float16 the tails of a softmax vanish; a teacher with a gradient moves."""
    student, teacher = (x.half().requires_grad_() for x in inputs_for("forward_kl"))
    values = as_loss(own_kl).function(student, teacher)
    values.sum().backward()
    expected = own_kl(student.detach().float(), teacher.detach().float())
    torch.testing.assert_close(values.detach(), expected)
    assert values.dtype == torch.float32 and teacher.grad is None and student.grad.abs().sum() > 0


def test_a_run_says_the_name_goes_on_under_it_and_the_file_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A report that cannot be written after all training, or a recipe that means another loss elsewhere."""
    monkeypatch.chdir(make_project(tmp_path, layers=3))
    words = "{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true}"
    plain = Recipe.from_text(f"""
version: 1
task: text-classification
model: base
output_dir: runs/own
data: {{dataset: data, max_length: 32}}
student: {{layers: 2}}
teacher: {{model: base, training: {words}}}
distillation: {{losses: [{{}}]}}
training: {words}
measurement: {{batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
""")
    own = plain.model_copy(
        update={
            "distillation": DistillationConfig(losses=(LossTerm(loss=own_kl, temperature=2.0),)),
            "pruning": (PruningConfig(structure="ffn", criterion=own_scores, sparsity=0.5),),
        }
    )
    name, scores = f"{__name__}.own_kl", f"{__name__}.own_scores"
    does = [line for stage in make_plan(own).stages for line in stage.does]
    assert any(f"x {name} at temperature 2" in line for line in does) and any(f"by {scores}" in line for line in does)
    report = run(own).report
    assert report["recipe"]["distillation"]["losses"] == [{"loss": name, "temperature": 2.0}]
    assert report["recipe"]["pruning"] == [{"structure": "ffn", "criterion": scores, "sparsity": 0.5}]
    assert f"loss: {name}" in (written := (tmp_path / "runs/own/hf_shrink_recipe.yaml").read_text())
    assert f"criterion: {scores}" in written and " at 0x" not in json.dumps(report)
    assert run(own).report == report  # the manifest's recipe is the same one
    with pytest.raises(RecipeError, match=r"distillation\.losses\.0\.loss"):
        run(plain)
    with pytest.raises(RecipeError, match="cannot carry a function of your own") as refused:
        Recipe.from_yaml(tmp_path / "runs/own/hf_shrink_recipe.yaml")
    assert "pruning.0.criterion" in str(refused.value) and "distillation.losses.0.loss" in str(refused.value)
