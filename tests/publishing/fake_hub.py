"""A small Hub for tests: the routes that the real client calls to publish and to load, a log of requests, and faults on order.

Two listeners, as on the real one: the Hub itself, and the store of large files, to which no token may ever go.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.publishing.fake_repos import File, Repo, Store, git_oid
from tests.publishing.faulty_http import Fault, Handler

WRITER, READER, OTHER = (
    "hf_canaryWRITERwriterWRITERwriterWRITER",
    "hf_canaryREADERreaderREADERreaderREADER",
    "hf_otherOTHERother",
)
USERS = {WRITER: ("alice", "write"), READER: ("alice", "read"), OTHER: ("bob", "write")}
ORGS = ("acme", "my-name")
LARGE = 2000
"""Bytes from which any file is a large one; weights always are."""


class FakeHub:
    """Both servers on their threads; use as a context manager.

    Attributes:
        log: ``METHOD path?query -> status`` of each request, ``cut`` or ``stall`` where there was no answer.
        store_auth: authorization headers that reached the store.
        bodies: everything that was uploaded, as it arrived.
    """

    def __init__(self, cas: Path) -> None:
        self.repos: dict[str, Repo] = {}
        self.store = Store(cas)
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.store_auth: list[str] = []
        self.bodies: list[bytes] = []
        self.lock, self.released = threading.RLock(), threading.Event()
        self.hub, self.lfs = self._serve(HubHandler), self._serve(StoreHandler)
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in (self.hub, self.lfs))

    def _serve(self, handler: type["Handler"]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"fake": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def __enter__(self) -> "FakeHub":
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in (self.hub, self.lfs):
            server.shutdown()
            server.server_close()

    def add(self, name: str, *, private: bool = True) -> Repo:
        """A repository with nothing in it but its first commit."""
        self.repos[name] = Repo(name, private, name.split("/")[0])
        return self.repos[name]

    def calls(self, pattern: str) -> list[str]:
        """The lines of the log that match."""
        return [line for line in self.log if re.search(pattern, line)]

    def writes(self) -> list[str]:
        """Requests that could have changed something; asking how files are to be uploaded is none."""
        harmless = r"^(GET|HEAD)|validate-yaml|preupload|paths-info"
        return [line for line in self.log if not re.search(harmless, line)]


class StoreHandler(Handler):
    """Takes and gives large files by sha256; a body that is not what its name says is refused."""

    def route(self) -> tuple[int, Any, dict[str, str]]:
        if self.headers.get("Authorization"):
            self.fake.store_auth.append(str(self.headers["Authorization"]))
        sha = self.path.rsplit("/", 1)[-1]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha:
                return 400, {"error": "other bytes than announced"}, {}
            self.fake.store.lfs[sha] = self.body
            return 200, {}, {"ETag": f'"{sha}"'}
        return 200, self.fake.store.lfs[sha], {"ETag": f'"{sha}"'}


class HubHandler(Handler):
    """The Hub's own routes."""

    def route(self) -> tuple[int, Any, dict[str, str]]:
        split = urlsplit(self.path)
        path, self.query = split.path, parse_qs(split.query)
        scheme, _, token = str(self.headers.get("Authorization") or "").partition(" ")
        self.user, self.role = USERS.get(token, ("", "")) if scheme == "Bearer" else ("", "")
        if path == "/api/whoami-v2":
            if not self.user:
                return 401, {"error": "Invalid username or password."}, {}
            access = {"displayName": "test", "role": self.role}
            orgs = [{"name": name} for name in ORGS]
            return (
                200,
                {"type": "user", "name": self.user, "orgs": orgs, "auth": {"accessToken": access}},
                {},
            )
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._repo(found[1], unquote(found[2] or ""))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(found[1], json.loads(self.body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], unquote(found[2]), unquote(found[3]))
        return 404, {"error": f"no such route: {path}"}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        owner = asked.get("organization") or self.user
        name = f"{owner}/{asked['name']}"
        if self.role != "write" or owner not in (self.user, *ORGS):
            return 403, {"error": "forbidden"}, {"X-Error-Message": f"You don't have the rights to create {name}"}
        url = {"url": f"{self.fake.url}/{name}"}
        if name in self.fake.repos:
            return 409, {"error": "You already created this model repo", **url}, {}
        self.fake.add(name, private=asked.get("visibility", "public") == "private")
        return 200, url, {}

    def _repo(self, name: str, rest: str) -> tuple[int, Any, dict[str, str]]:
        repo = self.fake.repos.get(name)
        mine = repo is not None and repo.owner in (self.user, *(ORGS if self.user else ()))
        if repo is None or (repo.private and not mine):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        may_write = mine and self.role == "write"
        verb, _, tail = rest.partition("/")
        if verb in ("", "revision"):
            return self._info(repo, tail or "main")
        if verb == "auth-check":
            return (200, {}, {}) if may_write or tail != "write" else self._forbidden()
        if verb == "refs":
            kinds = {"branches": {n: s for n, s in repo.refs.items() if not n.startswith("refs/")}, "tags": repo.tags}
            pulls = {n: s for n, s in repo.refs.items() if n.startswith("refs/")}
            listed = {
                kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in names.items()]
                for kind, names in kinds.items()
            }
            return (
                200,
                {
                    **listed,
                    "converts": [],
                    "pullRequests": [{"name": n, "ref": n, "targetCommit": s} for n, s in pulls.items()],
                },
                {},
            )
        if verb == "discussions":
            return 200, {"discussions": repo.pulls, "count": len(repo.pulls), "start": 0}, {}
        if verb == "tree":
            return self._tree(repo, tail)
        if verb == "xet-read-token":
            return self._xet()
        if not may_write:
            return self._forbidden()
        if verb == "xet-write-token":
            return self._xet()
        if verb == "preupload":
            return self._preupload(repo, tail)
        if verb == "commit":
            return self._commit(repo, tail)
        if verb == "branch":
            if tail in repo.refs:
                return 409, {"error": "Reference already exists"}, {}
            repo.refs[tail] = repo.refs["main"]
            return 200, {}, {}
        if verb == "tag":
            tag = json.loads(self.body)["tag"]
            if tag in repo.tags:
                return 409, {"error": "Tag reference exists already"}, {}
            if (sha := repo.find(tail)) is None:
                return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
            repo.tags[tag] = sha
            return 200, {}, {}
        return 404, {"error": f"no such route: {rest}"}, {}

    def _forbidden(self) -> tuple[int, Any, dict[str, str]]:
        return 403, {"error": "forbidden"}, {"X-Error-Message": "Your token cannot write here"}

    def _xet(self) -> tuple[int, Any, dict[str, str]]:
        url, until = f"local://{self.fake.store.cas}", 4_000_000_000
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
        return 200, {"casUrl": url, "accessToken": "xet", "exp": until}, headers

    def _info(self, repo: Repo, revision: str) -> tuple[int, Any, dict[str, str]]:
        if (sha := repo.find(revision)) is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": name} for name in sorted(repo.commits[sha])]
        return 200, {"id": repo.name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}, {}

    def _tree(self, repo: Repo, tail: str) -> tuple[int, Any, dict[str, str]]:
        revision = next((ref for ref in (*repo.refs, *repo.tags, *repo.commits) if f"{tail}/".startswith(f"{ref}/")), None)
        if revision is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        sha, folder = repo.find(revision), tail[len(revision) + 1 :]
        files = {name: file for name, file in repo.commits[str(sha)].items() if name.startswith(f"{folder}/" if folder else "")}
        if folder and not files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": str(sha)}
        found = []
        for name, file in sorted(files.items()):
            found.append({"type": "file", "path": name, "oid": file.oid, "size": file.size})
            if file.lfs:
                found[-1]["lfs"] = {"oid": file.lfs, "size": file.size, "pointerSize": 130}
        return 200, found, {}

    def _preupload(self, repo: Repo, tail: str) -> tuple[int, Any, dict[str, str]]:
        head, found = repo.commits.get(str(repo.find(tail)), {}), []
        for each in json.loads(self.body)["files"]:
            large = each["path"].endswith((".safetensors", ".onnx")) or each["size"] >= LARGE
            entry = {"path": each["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if each["path"] in head:
                entry["oid"] = head[each["path"]].lfs or head[each["path"]].oid
            found.append(entry)
        return 200, {"files": found}, {}

    def _batch(self, name: str, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for each in asked["objects"]:
            objects.append({"oid": each["oid"], "size": each["size"]})
            if each["oid"] not in self.fake.store.lfs:
                objects[-1]["actions"] = {"upload": {"href": f"{self.fake.store_url}/lfs/{each['oid']}", "header": {}}}
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _commit(self, repo: Repo, tail: str) -> tuple[int, Any, dict[str, str]]:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        creates_pull = "create_pr" in self.query
        base = repo.refs.get(tail)
        if base is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        if header.get("parentCommit") not in (None, base):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repo.commits[base])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(content, size=len(content))
            elif line["key"] == "lfsFile":
                if not self.fake.store.has(value["oid"]):
                    return 400, {"error": f"LFS object of {value['path']} was never uploaded"}, {}
                files[value["path"]] = File(lfs=value["oid"], size=value["size"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        number = len(repo.pulls) + 1
        sha = repo.commit(f"refs/pr/{number}" if creates_pull else tail, files, header["summary"])
        answer = {"commitOid": sha, "commitUrl": f"{self.fake.url}/{repo.name}/commit/{sha}"}
        if creates_pull:
            repo.pulls.append(
                {
                    "num": number,
                    "title": header["summary"],
                    "status": "open",
                    "isPullRequest": True,
                    "author": {"name": self.user},
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "repo": {"name": repo.name, "type": "model"},
                }
            )
            answer["pullRequestUrl"] = f"{self.fake.url}/{repo.name}/discussions/{number}"
        return 200, answer, {}

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        repo = self.fake.repos.get(name)
        if repo is None or (repo.private and repo.owner not in (self.user, *(ORGS if self.user else ()))):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if (sha := repo.find(revision)) is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        headers = {"X-Repo-Commit": sha}
        if (file := repo.commits[sha].get(path)) is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **headers}
        if file.lfs is None:
            return 200, file.content, {**headers, "ETag": f'"{git_oid(file.content)}"'}
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.lfs}"', "ETag": f'"{file.lfs}"'}
        headers["Location"] = f"{self.fake.store_url}/lfs/{file.lfs}"
        if (xet := self.fake.store.xet_hash(file.lfs)) is not None:
            link = f"{self.fake.url}/api/models/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": xet, "Link": f'<{link}>; rel="xet-auth"'}
        return 302, b"", headers
