"""From a folder to the Hub and back, in processes that are set up as a user's is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_shrink import PruningConfig, prune
from hf_shrink.loading.save import save
from hf_shrink.measurement.size import non_zero
from tests.publishing.conftest import CARD, ROOT, client_env
from tests.publishing.fake_hub import FakeHub
from tests.publishing.report import number, report, stage
from tests.tiny import tiny_classifier, tiny_tokenizer

IDS = {"input_ids": [[2, 4, 5, 3]]}
LOAD = """
import json, sys
if {plugin}: import hf_shrink
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({repo!r})
assert len(AutoTokenizer.from_pretrained({repo!r})) and ModelCard.load({repo!r}).data.license == "apache-2.0"
assert {plugin} or "hf_shrink" not in sys.modules
print(json.dumps(model(**{{k: torch.tensor(v) for k, v in {ids}.items()}}).logits.tolist()))
if {plugin}:
    from hf_shrink import Recipe
    from hf_shrink.verification import verify_model
    recipe = Recipe.from_pretrained({repo!r}, overrides=("data.dataset=mine.csv",))
    assert recipe.data.dataset == "mine.csv" and recipe.output_dir == "quickstart"
    print(json.dumps(verify_model({repo!r}).to_json()))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    cas = tmp_path_factory.mktemp("cas")
    with FakeHub(cas) as hub:
        yield hub


def artefact(folder: Path, *, plugin: bool) -> list[list[float]]:
    """A folder as a run leaves it; the logits of its model."""
    model = tiny_classifier("bert")
    if plugin:
        model = prune(model, PruningConfig(structure="heads", sparsity=0.5))
    assert save(model, folder, tokenizer=tiny_tokenizer()) == ("plugin" if plugin else "stock")
    last = stage("shrunk", "small", 79.0)
    last["measurements"].append(number("parameters_non_zero", non_zero(model), "parameters", "float32"))
    record = report(stages=[last])
    record["recipe"] = json.loads((ROOT / "tests/publishing/recipe.json").read_text())
    (folder / "README.md").write_text(CARD)
    (folder / "hf_shrink_report.json").write_text(json.dumps(record))
    (folder / "hf_shrink_recipe.yaml").write_text(json.dumps(record["recipe"]))
    with torch.no_grad():
        logits: list[list[float]] = model.eval()(**{k: torch.tensor(v) for k, v in IDS.items()}).logits.tolist()
    return logits


@pytest.mark.parametrize(
    ("plugin", "xet"), [(False, True), pytest.param(True, False, marks=pytest.mark.slow)], ids=["stock-xet", "plugin-lfs"]
)
def test_what_was_pushed_loads_by_name_to_the_same_logits(hub: FakeHub, tmp_path: Path, plugin: bool, xet: bool):
    """A commit can be whole and still not load: another name for a file, a redirect, a config that says the wrong thing."""
    folder, repo = tmp_path / "small", f"alice/{'plugin' if plugin else 'stock'}"
    logits = artefact(folder, plugin=plugin)
    env = client_env(hub, tmp_path / "home", xet=xet)

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    pushed = json.loads(python("-m", "hf_shrink", "push", str(folder), repo, "--json", "--tag", "v1").stdout)
    assert pushed["status"] == "published" and hub.repos[repo].moves == ["main"] and hub.store_auth == []
    looked = json.loads(python("-m", "hf_shrink", "inspect", repo, "--json").stdout)  # the first to ask for it on this machine
    assert [part["name"] for part in looked["parts"]] == ["embeddings", "layer 0", "layer 1", "other"]
    (snapshot,) = (tmp_path / "home/hub" / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
    assert {path.name for path in snapshot.iterdir()} == {"config.json", "model.safetensors"}, "what it reads, and nothing else"
    lines = python("-c", LOAD.format(plugin=plugin, repo=repo, ids=IDS)).stdout.splitlines()
    assert json.loads(lines[0]) == logits
    if plugin:
        assert json.loads(lines[1])["unknown"] == [] and len(json.loads(lines[1])["passed"]) == 4
