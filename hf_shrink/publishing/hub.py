"""The Hub as a publisher sees it; the one file that makes huggingface_hub write, and that reads what its errors mean."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.lines import first_line
from hf_shrink.publishing.patience import Again, Patience
from hf_shrink.publishing.selection import Upload

T = TypeVar("T")

CALL_LIMIT = 60.0
"""Seconds for one small question."""
COMMIT_LIMIT = 300.0
"""Seconds for the commit itself, which carries the small files."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")


@dataclass(frozen=True)
class Identity:
    """Who the token belongs to: the names it may write under, and whether it may only read."""

    name: str
    spaces: tuple[str, ...]
    reads_only: bool


@dataclass(frozen=True)
class State:
    """A revision of the repository: its commit, and for each file git's name, or the sha256 of a large one."""

    sha: str
    private: bool
    files: dict[str, str]

    def differs(self, uploads: Iterable[Upload]) -> list[Upload]:
        """Those that are not there with the same bytes."""
        return [each for each in uploads if self.files.get(each.name) not in (each.git_oid, each.sha256)]


class Moved(Exception):
    """The branch is not where the commit was to be put on."""


class Hub:
    """One repository, with one token and one limit of time.

    Args:
        repo_id: ``owner/name``.
        token: None takes the one that is logged in.
        patience: shared by all calls.

    Raises:
        RecipeError: no such id can be. ResourceError: nobody is logged in.
    """

    def __init__(self, repo_id: str, token: str | None, patience: Patience) -> None:
        check_id(repo_id)
        self.repo_id, self.patience = repo_id, patience
        self.token = token or get_token() or ""
        if not self.token:
            raise ResourceError(f"{repo_id}: nobody is logged in on this machine. Run `hf auth login`, or set HF_TOKEN.")
        self._api = HfApi(token=self.token, library_name="hf_shrink")

    def identity(self) -> Identity:
        """Who is going to publish."""
        facts = self._ask("who am I", lambda: self._api.whoami())
        orgs = tuple(str(org["name"]) for org in facts.get("orgs") or ())
        access = (facts.get("auth") or {}).get("accessToken") or {}
        return Identity(str(facts["name"]), (str(facts["name"]), *orgs), access.get("role") == "read")

    def state(self, revision: str = "main") -> State | None:
        """What is there now; None where the repository or the revision is not, or is not to be seen."""

        def look() -> State | None:
            try:
                info = self._api.repo_info(self.repo_id, revision=revision)
                entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=str(info.sha))
                files = [entry for entry in entries if isinstance(entry, RepoFile)]
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            return State(str(info.sha), bool(info.private), {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in files})

        return self._ask(f"look at {revision}", look)

    def may_write(self) -> None:
        """Raises: ResourceError: the token cannot write into this repository, which is there."""
        self._ask("ask for write access", lambda: self._api.auth_check(self.repo_id, write=True))

    def tag_target(self, tag: str) -> str | None:
        """The commit that a tag names; None where there is no such tag."""
        refs = self._ask("list tags", lambda: self._api.list_repo_refs(self.repo_id))
        return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)

    def pull_request(self, title: str, uploads: Sequence[Upload]) -> tuple[int, str] | None:
        """Number and commit of an open pull request of this title that holds just these files."""

        def numbers() -> list[int]:
            found = self._api.get_repo_discussions(self.repo_id, discussion_type="pull_request", discussion_status="open")
            return [each.num for each in found if each.title == title]

        for number in self._ask("list pull requests", numbers):
            state = self.state(f"refs/pr/{number}")
            if state is not None and not state.differs(uploads):
                return number, state.sha
        return None

    def create(self, *, public: bool) -> None:
        """Make the repository; one that is there stays as it is."""
        self._ask("create it", lambda: self._api.create_repo(self.repo_id, private=not public, exist_ok=True))

    def branch(self, name: str) -> None:
        """Make a branch of what ``main`` is; one that is there stays as it is."""
        self._ask(f"make branch {name}", lambda: self._api.create_branch(self.repo_id, branch=name, exist_ok=True))

    def tag(self, name: str, sha: str) -> None:
        """Name a commit; a tag that is there stays as it is."""
        self._ask(f"tag {name}", lambda: self._api.create_tag(self.repo_id, tag=name, revision=sha, exist_ok=True))

    def upload(self, uploads: Sequence[Upload], *, revision: str, create_pr: bool) -> list[CommitOperationAdd]:
        """Send the bytes of large files; nothing of it is to be seen until the commit.

        Raises:
            Again: a failure that may pass. ResourceError: one that does not.
        """
        adds = [CommitOperationAdd(each.name, each.source) for each in uploads]

        def send() -> None:
            self._api.preupload_lfs_files(self.repo_id, adds, revision=revision, create_pr=create_pr)

        with self._explained("upload"):
            self.patience.timed(send, self.patience.left())
        return adds

    def commit(
        self,
        adds: Sequence[CommitOperationAdd],
        removed: Sequence[str],
        *,
        title: str,
        revision: str,
        parent: str,
        create_pr: bool,
    ) -> str:
        """All of it in one commit on ``parent``, or nothing; its sha. Asked once: see ``State`` for whether it came to be.

        Raises:
            Moved: the branch points elsewhere. Again: a failure that may pass, or an answer that was lost.
            ResourceError: one that does not pass.
        """
        operations: list[Any] = [*adds, *(CommitOperationDelete(name, is_folder=False) for name in removed)]

        def post() -> str:
            done = self._api.create_commit(
                self.repo_id, operations, commit_message=title, revision=revision, parent_commit=parent, create_pr=create_pr
            )
            return str(done.oid)

        with self._explained("commit"):
            return self.patience.timed(post, COMMIT_LIMIT)

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        """A call that may be repeated."""

        def once() -> T:
            with self._explained(what):
                return call()

        try:
            return self.patience.retry(once, CALL_LIMIT, f"{self.repo_id}: {what}")
        except Moved as conflict:
            raise ResourceError(f"{self.repo_id}: {what}: {conflict} (409); run the same command again.") from None

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, httpx2.HTTPError, RuntimeError, ValueError, KeyError) as error:
            raise self._meaning(error, f"{self.repo_id}: {what}") from None

    def _meaning(self, error: BaseException, where: str) -> Exception:
        """What the caller should do about an error of the client."""
        if isinstance(error, RecipeError | ResourceError):
            return error
        said = _TOKEN.sub("hf_...", first_line(error))
        if isinstance(error, OfflineModeIsEnabled):
            return ResourceError(f"{where}: HF_HUB_OFFLINE is set; unset it to publish.")
        if isinstance(error, HfHubHTTPError):
            return _answered(error, where, said)
        if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
            return Again(f"the connection failed ({said or type(error).__name__})")
        if isinstance(error.__cause__, Exception):  # the client wraps what went wrong with one file
            return self._meaning(error.__cause__, where)
        return ResourceError(f"{where}: {said}")


def owned(name: str, token: str | None) -> str:
    """``owner/name`` of a repository that may be called by its name alone: it is the user's own then.

    Raises:
        RecipeError, ResourceError: as ``Hub``.
    """
    if "/" in name:
        return name
    return f"{Hub(f'me/{name}', token, Patience(CALL_LIMIT)).identity().name}/{name}"


def check_id(repo_id: str) -> None:
    """Raises: RecipeError: not ``owner/name`` as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(f"{repo_id[:80]!r} is no repository on the Hub: {first_line(error)}") from None
    if repo_id.count("/") != 1:
        raise RecipeError(f"{repo_id[:80]!r}: name owner and repository, e.g. my-name/{repo_id[:40]}.")


def _answered(error: HfHubHTTPError, where: str, said: str) -> Exception:
    """By the status of the server's answer."""
    status = error.response.status_code
    theirs = _TOKEN.sub("hf_...", (error.server_message or "").strip().split("\n")[0])[:200]
    if status in _PASSING:
        after = error.response.headers.get("Retry-After", "")
        return Again(f"the server answered {status}", float(after) if after.isdigit() else None)
    if status in (409, 412):
        return Moved(theirs or said)
    if status == 401:
        return ResourceError(f"{where}: the Hub does not know the token (401). Run `hf auth login` again.")
    if status == 403:
        return ResourceError(f"{where}: not allowed (403): {theirs or said}\nUse a token that may write there.")
    if status == 404:
        return ResourceError(f"{where}: not found (404), or not to be seen by this token.")
    return ResourceError(f"{where}: refused ({status}): {theirs or said}")
