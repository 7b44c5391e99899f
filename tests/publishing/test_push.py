"""One commit or none, whatever happens on the way; by the real client, judged by the server's own log."""

import itertools
from pathlib import Path

import pytest

from hf_shrink.files import sha256
from tests.publishing.conftest import Client
from tests.publishing.fake_hub import OTHER, READER, WRITER
from tests.publishing.fake_repos import File
from tests.publishing.faulty_http import Fault

NUMBERS = itertools.count()
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
COMMIT = r"POST .*/commit/"


@pytest.fixture
def repo(client: Client) -> str:
    """A private repository of the writer's that holds nothing yet."""
    name = f"alice/model-{next(NUMBERS)}"
    client.hub.add(name)
    return name


def published(client: Client, repo: str, ref: str = "main") -> set[str]:
    """Paths on a branch, less git's own."""
    return set(client.hub.repos[repo].head(ref)) - {".gitattributes"}


def test_a_folder_arrives_whole_in_one_commit_and_a_second_push_changes_nothing(client: Client, folder: Path):
    """Weights after the config, in a commit of their own: who loads in between gets half a model."""
    name = f"alice/new-{next(NUMBERS)}"
    done = client("push", folder=folder, repo_id=name)["pushed"]
    repo = client.hub.repos[name]
    assert done["status"] == "published" and done["commit"] == repo.refs["main"] and done["url"].endswith(done["commit"])
    assert repo.moves == ["main"] and published(client, name) == FILES and repo.private
    assert repo.head()["model.safetensors"].lfs == sha256(folder / "model.safetensors")
    assert repo.head()["config.json"].content == (folder / "config.json").read_bytes()
    again = client("push", folder=folder, repo_id=name)["pushed"]
    assert again["status"] == "unchanged" and again["commit"] == done["commit"] and again["sends"] == []
    assert repo.moves == ["main"] and client.hub.writes() == []


def test_a_dry_run_lists_bytes_and_writes_nothing(client: Client, folder: Path, repo: str):
    for name in (repo, f"alice/absent-{next(NUMBERS)}"):
        done = client("push", folder=folder, repo_id=name, dry_run=True)["pushed"]
        assert done["status"] == "dry run" and done["visibility"] == "private" and done["commit"] is None
        assert done["files"] == {path: (folder / path).stat().st_size for path in sorted(FILES)}
        assert client.hub.writes() == [] and not client.hub.calls("preupload")
    assert name not in client.hub.repos


def test_a_changed_file_is_sent_alone_and_an_earlier_model_goes_in_the_same_commit(client: Client, folder: Path, repo: str):
    """A shard or a word list that stays behind would be read together with the new weights."""
    stale = File(b"old", size=3)
    head = client.hub.repos[repo].head()
    head |= {"model-00001-of-00002.safetensors": stale, "vocab.txt": stale, "notes.txt": stale, "LICENSE": stale}
    client("push", folder=folder, repo_id=repo)
    assert published(client, repo) == FILES | {"notes.txt", "LICENSE"}
    (folder / "config.json").write_text('{"model_type": "bert", "x": 1}')
    done = client("push", folder=folder, repo_id=repo)["pushed"]
    assert done["sends"] == ["config.json"] and client.hub.repos[repo].moves == ["main", "main"]


def test_many_shards_move_main_once(client: Client, folder: Path, repo: str):
    """The client's own folder upload makes two commits of 251 files, and a loader may come in between."""
    (folder / "model.safetensors").unlink()
    for number in range(260):
        (folder / f"model-{number + 1:05}-of-00260.safetensors").write_bytes(number.to_bytes(2, "big") * 8)
    done = client("push", folder=folder, repo_id=repo)["pushed"]
    assert len(done["files"]) == 263 and client.hub.repos[repo].moves == ["main"]


def test_branch_and_tag(client: Client, folder: Path, repo: str):
    start = client.hub.repos[repo].refs["main"]
    done = client("push", folder=folder, repo_id=repo, revision="int8", tag="v1")["pushed"]
    mine = client.hub.repos[repo]
    assert mine.refs["main"] == start and mine.refs["int8"] == done["commit"] == mine.tags["v1"]
    assert client("push", folder=folder, repo_id=repo, revision="int8", tag="v1")["pushed"]["status"] == "unchanged"
    (folder / "config.json").write_text("{}")
    other = client("push", folder=folder, repo_id=repo, revision="int8", tag="v1")
    assert other["code"] == 2 and "'v1' names other files" in other["says"] and mine.refs["int8"] == done["commit"]


@pytest.mark.parametrize("kind", ["none", "after", "before"])
def test_a_pull_request_is_opened_once(client: Client, folder: Path, repo: str, kind: str):
    """A lost answer, tried again without a look, opens a second one."""
    faults = () if kind == "none" else (Fault(COMMIT, kind),)
    done = client("push", folder=folder, repo_id=repo, create_pr=True, faults=faults)["pushed"]
    mine = client.hub.repos[repo]
    assert len(mine.pulls) == 1 and mine.moves == ["refs/pr/1"] and done["url"].endswith("/discussions/1")
    assert published(client, repo, "refs/pr/1") == FILES and published(client, repo) == set()
    again = client("push", folder=folder, repo_id=repo, create_pr=True)["pushed"]
    assert again["status"] == "unchanged" and again["url"] == done["url"] and len(mine.pulls) == 1


# ---- the fault table ----

GOES_ON = {
    "who am I 503": (Fault("whoami", "status", 503),),
    "who am I cut": (Fault("whoami", "before"),),
    "state cut": (Fault("GET .*/revision/main", "before"),),
    "tree 500": (Fault("/tree/", "status", 500),),
    "write check 502": (Fault("auth-check", "status", 502),),
    "preupload 500 once": (Fault("preupload", "status", 500),),
    "preupload cut": (Fault("preupload", "amid"),),
    "commit 500": (Fault(COMMIT, "status", 500),),
    "commit 503 twice": (Fault(COMMIT, "status", 503, times=2),),
    "commit 504 four times": (Fault(COMMIT, "status", 504, times=4),),
    "commit 429": (Fault(COMMIT, "status", 429, headers={"Retry-After": "7"}),),
    "commit cut before": (Fault(COMMIT, "before"),),
    "commit cut amid": (Fault(COMMIT, "amid"),),
    "commit 409 once": (Fault(COMMIT, "status", 409),),
    "answer lost": (Fault(COMMIT, "after"),),
    "answer lost, then the look fails": (Fault(COMMIT, "after"), Fault("/revision/main", "status", 502, skip=2)),
    "the look after the commit fails": (Fault("/tree/", "status", 500, skip=2),),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_what_passes_ends_in_exactly_one_commit(client: Client, folder: Path, repo: str, case: str):
    """Tried again without a look, a commit whose answer was lost is there twice, or is called a conflict with itself."""
    before = {path.name: sha256(path) for path in folder.iterdir()}
    answer = client("push", folder=folder, repo_id=repo, faults=tuple(Fault(**vars(f)) for f in GOES_ON[case]))
    assert answer.get("pushed", {}).get("status") == "published", answer
    assert client.hub.repos[repo].moves == ["main"] and published(client, repo) == FILES
    assert len(client.hub.calls(COMMIT)) <= 5
    assert {path.name: sha256(path) for path in folder.iterdir()} == before
    assert case != "commit 429" or 7 in answer["pauses"]


STOPS = {
    "who am I 401": ((Fault("whoami", "status", 401, -1),), "does not know the token", "hf auth login"),
    "state 403": ((Fault("/revision/main", "status", 403, -1),), "not allowed (403)", ""),
    "write check 403": ((Fault("auth-check", "status", 403, -1),), "not allowed (403)", ""),
    "preupload 403": ((Fault("preupload", "status", 403, -1),), "not allowed (403)", ""),
    "preupload 500": ((Fault("preupload", "status", 500, -1),), "500", "Run the same command again"),
    "commit 400": ((Fault(COMMIT, "status", 400, -1),), "refused (400)", ""),
    "commit 403": ((Fault(COMMIT, "status", 403, -1),), "not allowed (403)", ""),
    "commit 404": ((Fault(COMMIT, "status", 404, -1),), "not found (404)", ""),
    "commit 412": ((Fault(COMMIT, "status", 412, -1),), "nothing was published", "Run the same command again"),
    "commit 500": ((Fault(COMMIT, "status", 500, -1),), "after 5 tries", "Run the same command again"),
    "commit cut": ((Fault(COMMIT, "before", times=-1),), "after 5 tries", "Run the same command again"),
    "commit 429, too long": (
        (Fault(COMMIT, "status", 429, -1, headers={"Retry-After": "4000"}),),
        "429",
        "Run the same command again",
    ),
    "state cut": ((Fault("/revision/main", "before", times=-1),), "the connection failed", "Run the same command again"),
}


@pytest.mark.parametrize("case", STOPS)
def test_what_does_not_pass_leaves_the_repository_as_it_was_and_says_what_to_do(
    client: Client, folder: Path, repo: str, case: str
):
    faults, says, do = STOPS[case]
    answer = client("push", folder=folder, repo_id=repo, faults=tuple(Fault(**vars(fault)) for fault in faults))
    assert answer.get("code") == 4 and says in answer["says"] and do in answer["says"], answer
    assert repo in answer["says"] and len(answer["says"].splitlines()) <= 3
    assert client.hub.repos[repo].moves == [] and len(client.hub.calls(COMMIT)) <= 5
    assert client("push", folder=folder, repo_id=repo)["pushed"]["status"] == "published"  # what was said to help helps
    assert client.hub.repos[repo].moves == ["main"]


@pytest.mark.parametrize("kind", ["stall", "stall_after"])
def test_a_server_that_never_answers_does_not_hold_us_for_ever(client: Client, folder: Path, repo: str, kind: str):
    """The client waits without a limit of its own."""
    answer = client("push", folder=folder, repo_id=repo, limit=1.0, faults=(Fault(COMMIT, kind),))
    assert answer.get("pushed", {}).get("status") == "published", answer
    assert client.hub.repos[repo].moves == ["main"]


def test_the_wall_clock_limit_holds(client: Client, folder: Path, repo: str):
    answer = client("push", folder=folder, repo_id=repo, time_limit=1.0, faults=(Fault("whoami", "stall", times=-1),))
    assert answer["code"] == 4 and "within 1 s" in answer["says"], answer
    assert client("push", folder=folder, repo_id=repo, time_limit=0)["code"] == 2


def test_somebody_elses_commit_in_between_is_a_conflict_and_stays(client: Client, folder: Path, repo: str):
    """The last to come would overwrite it without a word."""
    mine = client.hub.repos[repo]
    route, files = Fault(COMMIT, "status", 503), {"theirs.txt": File(b"theirs", size=6)}

    class Meanwhile(Fault):
        @property
        def kind(self) -> str:
            if "theirs.txt" not in mine.head():
                mine.commit("main", {**mine.head(), **files}, "theirs")
            return "through"  # it is the server that has to see that the parent is no longer the head

        @kind.setter
        def kind(self, _: str) -> None: ...

    answer = client("push", folder=folder, repo_id=repo, faults=(Meanwhile(**vars(route)),))
    assert answer["code"] == 4 and "moved to" in answer["says"], answer
    assert mine.moves == ["main"] and published(client, repo) == {"theirs.txt"}


def test_bytes_that_arrive_damaged_are_found_out(client: Client, folder: Path, repo: str):
    """Nobody else compares: the card would vouch for weights that are not there."""
    mine = client.hub.repos[repo]
    commit = mine.commit
    mine.commit = lambda ref, files, title: commit(ref, {**files, "config.json": File(b"{]", size=2)}, title)  # type: ignore[method-assign]
    answer = client("push", folder=folder, repo_id=repo)
    assert answer["code"] == 5 and "config.json" in answer["says"], answer


# ---- refused before anything is sent ----


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"repo_id": "no owner/x y"}, 2, "no repository on the Hub"),
        ({"repo_id": "just-a-name"}, 2, "name owner and repository"),
        ({"repo_id": "../../etc"}, 2, "no repository"),
        ({"create_pr": True, "tag": "v1"}, 2, "choose one"),
        ({"create_pr": True, "revision": "x"}, 2, "choose one"),
        ({"revision": "refs/pr/1"}, 2, "name a branch"),
        ({"token": "hf_unknownUNKNOWNunknown"}, 4, "does not know the token"),
        ({"token": READER}, 4, "may only read"),
        ({"token": OTHER}, 4, "bob can make repositories under bob, "),
        ({"repo_id": "stranger/model"}, 4, "alice, acme, my-name only"),
        ({"repo_id": "alice/nowhere", "create_pr": True}, 3, "nothing to open a pull request against"),
        ({"public": True}, 2, "is private"),
        ({"message": f"made with {OTHER}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}, 6, "title of the commit: holds an access token"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_any_write(
    client: Client, folder: Path, repo: str, options: dict[str, object], code: int, says: str
):
    answer = client("push", **{"folder": folder, "repo_id": repo, **options})
    assert answer.get("code") == code and says in answer["says"], answer
    assert client.hub.writes() == [] and len(answer["says"].splitlines()) <= 3


@pytest.mark.parametrize(("exists", "is_public", "asks"), [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_nothing_becomes_public_without_being_asked_to(client: Client, folder: Path, exists: int, is_public: int, asks: int):
    name = f"alice/seen-{next(NUMBERS)}"
    if exists:
        client.hub.add(name, private=not is_public)
    answer = client("push", folder=folder, repo_id=name, public=bool(asks))
    if exists and is_public != asks:
        assert answer["code"] == (6 if is_public else 2) and client.hub.repos[name].moves == []
    else:
        assert answer["pushed"]["visibility"] == ("public" if asks else "private")
        assert client.hub.repos[name].private is not bool(asks)


def test_preflight_makes_a_private_repository_or_says_what_is_wrong(client: Client):
    """Said after a night of training, it costs a night."""
    name = f"alice/later-{next(NUMBERS)}"
    assert client("preflight", target={"repo_id": name}, faults=(Fault("repos/create", "after"),))["pushed"] is None
    assert client.hub.repos[name].private and client.hub.repos[name].moves == []
    assert client("preflight", target={"repo_id": name})["pushed"] is None and client.hub.writes() == []
    for options in ({"token": READER}, {"token": OTHER}):
        assert client("preflight", target={"repo_id": name}, **options)["code"] == 4
    assert client("preflight", target={"repo_id": "acme/x"}, faults=(Fault("repos/create", "status", 403),))["code"] == 4


def test_the_token_is_in_nothing_that_was_said_sent_or_logged(client: Client, folder: Path, repo: str):
    """With the client's own debug log on, and failures of each kind; runs last, over all that the tests here caused."""
    said = [
        client("push", folder=folder, repo_id=repo, faults=(Fault(COMMIT, k, 500, -1),)) for k in ("status", "after", "before")
    ]
    client("push", folder=folder, repo_id=repo)
    heard = client.errors.read_text(errors="replace") + repr(said) + "".join(client.hub.log)
    assert client.errors.stat().st_size, "the debug log is empty: nothing was looked at"
    assert not any(token in heard for token in (WRITER, READER, OTHER))
    assert not any(WRITER.encode() in body for body in client.hub.bodies) and client.hub.store_auth == []
