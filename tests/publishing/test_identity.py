"""A published text says nothing of the machine that it was made on, and a file is readable by whom the umask says."""

import getpass
import json
import re
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_shrink.errors import SecurityError
from hf_shrink.files import files_below
from hf_shrink.publishing.checks import check_texts
from hf_shrink.publishing.identity import trace_in
from hf_shrink.publishing.push import with_card
from hf_shrink.publishing.selection import select
from hf_shrink.publishing.target import Target
from tests.warm import python

PRIVATE = re.compile(r"(?<![\w:/.<-])/(?!/)[\w.-]+/[\w./-]+|\b[A-Za-z]:\\|(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose names can be told from words."""
    monkeypatch.setattr(socket, "gethostname", lambda: "canary-host-7.lan")
    monkeypatch.setattr(getpass, "getuser", lambda: "canaryuser")


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("made on canary-host-7", "machine"),
        ("http server CANARY-HOST-7.lan", "machine"),
        ("/scratch/canaryuser/x", "user"),
        ("D:\\canaryuser\\x", "user"),
        ("canaryuser@somewhere", "user"),
        ("https://huggingface.co/canaryuser/model", None),
        ("base_model: canaryuser/model", None),
        ("thanks to canaryuser", None),
        ("canary-host-77 and my-canary-host-7", None),
        ("", None),
    ],
)
def test_names_of_machine_and_user_are_found_where_they_leak(somebody: None, text: str, tells: str | None):
    found = trace_in(text.encode())
    assert found is None if tells is None else tells in str(found)


@pytest.mark.parametrize(("host", "user"), [("mercury", "root"), ("localhost", "ubuntu"), ("", ""), ("a-1", "ab")])
def test_names_that_are_words_are_not_looked_for(monkeypatch: pytest.MonkeyPatch, host: str, user: str):
    """A card about planets could not be published from a machine called mercury."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    assert trace_in(f"{host} /{user}/x {user}@y".encode()) is None


def test_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "current folder" in str(trace_in(f'{{"cache": "{tmp_path}/x"}}'.encode()))
    assert trace_in(f"{tmp_path}-other".encode()) is None


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "chat_template.jinja"])
def test_an_upload_that_names_the_machine_is_refused(somebody: None, folder: Path, name: str):
    """A commit is public for good."""
    check_texts(select(folder), "")
    if name == "model.safetensors":
        save_file({"weight": torch.zeros(2)}, folder / name, metadata={"from": "canary-host-7"})
    else:
        old = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(old.replace("}", ', "from": "canary-host-7"}') if "{" in old else f"{old}canary-host-7\n")
    with pytest.raises(SecurityError, match=re.escape(name)):
        check_texts(select(folder), "")
    (folder / "tokenizer.json").write_text('{"canary-host-7": 1}')


def test_words_of_a_vocabulary_are_nobody_s(somebody: None, folder: Path):
    (folder / "tokenizer.json").write_text('{"canary-host-7": 1}')
    check_texts(select(folder), "")


def test_no_text_of_a_run_s_upload_tells_where_it_was_made(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Name, machine, address or folder: what strangers read cannot be taken back."""
    monkeypatch.chdir(project)
    selection = with_card(select(project / "runs/quickstart"), Target("alice/model"))
    texts = {each.name: each.read().decode() for each in selection.uploads if not each.is_weights}
    assert {"README.md", "hf_shrink_report.json", "hf_shrink_recipe.yaml", "config.json"} <= texts.keys()
    canaries = {str(Path.home()), str(project), str(project.parent), str(Path.cwd())} - {"/"}
    canaries |= {name for name in (socket.gethostname(),) if not name.isalpha()}
    for name, text in texts.items():
        if name != "tokenizer.json":
            assert not [word for word in canaries if word in text], name
            assert not PRIVATE.findall(text.replace("text/", "")), name
    assert "alice/model" in texts["README.md"] and "path/to/this/folder" not in texts["README.md"]
    assert "alice/model" in texts["README.md"].split("## How to use")[1].split("## Reproduce")[0]


WRITES = """
import json, os, sys
from pathlib import Path
os.umask(int(sys.argv[1], 8))
from hf_shrink.files import write_text
from hf_shrink.workspace import Workspace
from safetensors.torch import save_file
import torch
work = Workspace(Path(sys.argv[2]))
work.begin({"task": "x"}, {})
def write(fresh):
    save_file({"a": torch.zeros(1)}, fresh / "model.safetensors")
    (fresh / "below").mkdir()
    (fresh / "below/config.json").write_text("{}")
    return {}
work.write_stage("student", write)
work.write_artefact("final", write)
work.close()
from tests.publishing.report import report
(Path(sys.argv[2]) / "hf_shrink_report.json").write_text(json.dumps(report()))
from hf_shrink.publishing.readme import make_card
make_card(sys.argv[2])
"""


@pytest.mark.parametrize("umask", ["022", "027", "077"])
def test_files_are_for_whom_the_umask_says(tmp_path: Path, umask: str):
    """safetensors makes files that only their owner reads: a colleague's job fails. No token is ever written to a file."""
    done = python(WRITES, umask, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in files_below(tmp_path / "run")}
    assert {"model.safetensors", "config.json", "hf_shrink_manifest.json", "README.md"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~int(umask, 8)}, json.dumps(modes)
