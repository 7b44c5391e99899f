"""Publishing at the end of a run and of a training: rights asked for first, the same checked push last."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_shrink import Recipe, pipeline, run
from hf_shrink.errors import RecipeError, ResourceError
from tests.publishing.conftest import client_env
from tests.publishing.fake_hub import WRITER, FakeHub

TRAIN = """
import sys
from pathlib import Path
from hf_shrink import ShrinkError
from tests.publishing.fake_hub import WRITER
from tests.tiny import tiny_tokenizer
from tests.training.runs import trainer_for
folder = Path(sys.argv[1])
try:
    trainer_for("bert", "classification", folder / "other", push_to_hub=True)
except ShrinkError as error:
    assert error.code == 2 and 'hub_strategy="end"' in str(error), error
else:
    raise AssertionError("uploads during training were not refused")
words = {"push_to_hub": True, "hub_strategy": "end", "hub_token": WRITER, "max_steps": 2, "save_strategy": "steps"}
trainer = trainer_for("bert", "classification", folder / "model", save_steps=1, **words)
trainer.processing_class = tiny_tokenizer()
trainer.train()
assert trainer.push_to_hub(commit_message="first").status == "published"
(folder / "model" / "README.md").write_text("mine")
assert trainer.push_to_hub().sends == ("README.md",)
assert (folder / "model" / "README.md").read_text() == "mine"
"""


def test_a_trainer_publishes_its_model_and_nothing_else(tmp_path: Path):
    """The stock one uploads training_args.bin, in which the token stands in clear, and makes the repository public."""
    (tmp_path / "cas").mkdir()
    with FakeHub(tmp_path / "cas") as hub:
        env = {**client_env(hub, tmp_path / "home", xet=True, token="")}
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(tmp_path)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        repo = hub.repos["alice/model"]
        names = {".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert set(repo.head()) == names and repo.private and repo.moves == ["main", "main"]
        assert (tmp_path / "model/training_args.bin").exists() and "first" in repo.titles.values()
        assert not any(WRITER.encode() in body for body in hub.bodies) and WRITER not in done.stdout + done.stderr


def test_a_run_asks_first_and_publishes_last(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A finished run can still be told where to publish: that is no change of what was done."""
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    asked: list[object] = []
    monkeypatch.setattr(pipeline, "preflight", lambda target: asked.append(target.repo_id))
    monkeypatch.setattr(pipeline, "push_to", lambda target, folder: asked.append((target.tag, folder)) or "pushed")
    recipe = Recipe.from_yaml("recipes/quickstart.yaml", ["publishing.push_to=alice/model", "publishing.tag=v1"])
    outcome = run(recipe)
    assert outcome.pushed == "pushed" and asked == ["alice/model", ("v1", Path(recipe.output_dir))]


def test_missing_rights_stop_a_run_before_anything_is_trained(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Said at the end, it costs the night that the training took."""

    def refuse(_: object) -> None:
        raise ResourceError("not yours")

    monkeypatch.chdir(project)
    monkeypatch.setattr(pipeline, "preflight", refuse)
    words = [f"output_dir={tmp_path}/new", "publishing.push_to=alice/model"]
    with pytest.raises(ResourceError, match="not yours"):
        run(Recipe.from_yaml("recipes/quickstart.yaml", words))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{public: true}", "no push_to"),
        ("{tag: v1}", "no push_to"),
        ("{push_to: just-a-name}", "push_to"),
        ("{push_to: a/b/c}", "push_to"),
        ("{push_to: alice/model, create_pr: true, tag: v1}", "remove revision and tag"),
    ],
)
def test_a_destination_that_cannot_be_meant_is_refused_with_the_recipe(words: str, says: str):
    text = f"version: 1\ntask: text-classification\nmodel: a/b\noutput_dir: x\ndata: {{dataset: a/b}}\npublishing: {words}\n"
    with pytest.raises(RecipeError, match=says):
        Recipe.from_text(text)
