"""A finished folder to the Hub: checked before anything is sent, in one commit, and compared with what arrived."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ResourceError
from hf_shrink.lines import few
from hf_shrink.publishing.checks import check_gate, check_secrets, check_texts
from hf_shrink.publishing.hub import Hub, Moved, State
from hf_shrink.publishing.patience import Again, Patience
from hf_shrink.publishing.selection import CARD, REPORT, Selection, Upload, is_stale, select, upload_of
from hf_shrink.publishing.target import Target, allowed

TIME_LIMIT = 3600.0
"""Seconds that a push may take by default."""


@dataclass(frozen=True)
class Pushed:
    """What was published, or would be.

    Attributes:
        url: of the commit, the pull request, or the repository in a dry run.
        commit: its sha; None in a dry run that would change something.
        status: ``published``, ``unchanged`` where all of it was there, ``dry run``.
        files: bytes by path, of everything that belongs to the upload.
        sends: paths that were not there with these bytes.
        removes: files of an earlier model that go in the same commit.
        left_out: names in the folder that stay at home.
    """

    repo_id: str
    url: str
    commit: str | None
    status: str
    visibility: str
    branch: str
    tag: str | None
    files: dict[str, int]
    sends: tuple[str, ...]
    removes: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Any:
        """Lines for the terminal."""
        from rich.text import Text

        lines = [
            f"{name}  {size:,} bytes{'' if name in self.sends else ', there already'}" for name, size in self.files.items()
        ]
        lines += [f"removes {name}, of an earlier model" for name in self.removes]
        lines += [f"leaves out {few(self.left_out, 8)}"] if self.left_out else []
        lines += [f"{self.status}: {self.visibility} {self.repo_id}, {self.branch}, {sum(self.files.values()):,} bytes"]
        return Text("\n".join([*lines, self.url]))


def push(
    folder: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    time_limit: float = TIME_LIMIT,
) -> Pushed:
    """Publish the model in ``folder`` in one commit. Again with the same folder, it changes nothing.

    Only config, weights, tokenizer, card, recipe, report, ``onnx/`` and the optional remote-code file go; paths in recipe
    and report are cut to their last name. A new repository is private.

    Args:
        folder: of a finished run, or any with model, tokenizer and card.
        repo_id: ``owner/name``.
        public: make a new repository public; needed to publish into one that is.
        create_pr: open a pull request instead of moving ``main``.
        revision: branch to commit to, made where it is missing.
        tag: name for the commit.
        message: title of the commit; None says what is in it.
        dry_run: say what would happen; nothing on the Hub changes.
        token: None takes the one that is logged in.
        time_limit: seconds for all of it, above 0.

    Raises:
        RecipeError: options that cannot be meant.
        ResourceError: network, login, rights, the time limit, or somebody else's commit in between.
        MismatchError: the folder is not whole. IntegrityError: a damaged file or card, or other bytes than were sent.
        SecurityError: a token or a private path in a text, or a public repository without ``public``.
        QualityError: the run's gate was missed.
    """
    if not time_limit > 0:
        raise RecipeError(f"time_limit must be above 0 seconds, got {time_limit}.")
    target = Target(repo_id, public, create_pr, revision, tag, message)
    return push_to(target, Path(folder), dry_run=dry_run, token=token, time_limit=time_limit)


def push_to(
    target: Target, folder: Path, *, dry_run: bool = False, token: str | None = None, time_limit: float = TIME_LIMIT
) -> Pushed:
    """``push`` with its options as one value."""
    selection, repo_id = with_card(select(folder), target), target.repo_id
    check_gate(selection)
    hub = Hub(repo_id, token, Patience(time_limit))
    check_texts(selection, hub.token)
    check_secrets("the title of the commit", (target.message or "").encode(), hub.token)
    state = allowed(hub, target)
    if target.create_pr and state is None:
        raise MismatchError(f"{repo_id}: not there, so nothing to open a pull request against; push without create_pr first.")
    if dry_run:
        there = None if state is None else hub.state(target.branch) or state
        return _outcome(hub, target, selection, there, "dry run")
    if state is None:
        hub.create(public=target.public)
        state = _found(allowed(hub, target), repo_id)
    if target.tag is not None:
        _check_tag(hub, target.tag, selection)
    if target.revision is not None and hub.state(target.revision) is None:
        hub.branch(target.revision)
    before = _found(hub.state(target.branch), repo_id)
    if target.create_pr:
        return _as_pull_request(hub, target, selection, before)
    after = _committed(hub, target, selection, before)
    if target.tag is not None:
        hub.tag(target.tag, after.sha)
        _check_tag(hub, target.tag, selection)
    return _outcome(hub, target, selection, before, "unchanged" if after.sha == before.sha else "published", after.sha)


def with_card(selection: Selection, target: Target) -> Selection:
    """The same files, but for a card that says where the model will be: in the code that uses it."""
    found = {each.name: each for each in selection.uploads}
    if REPORT not in found or CARD not in found:
        return selection
    from hf_shrink.publishing.card import for_repo  # here, so that pushing other folders leaves torch unimported
    from hf_shrink.publishing.usage import digest_of, proven

    digest = digest_of({each.name: each.sha256 for each in selection.uploads if each.is_weights})
    try:
        text = found[CARD].read().decode("utf-8")
        card = for_repo(text, proven(json.loads(found[REPORT].read()), digest), target.repo_id, target.revision)
    except (RecipeError, IntegrityError, UnicodeDecodeError):
        return selection  # a card that only its writer understands goes as it is, if the checks let it
    found[CARD] = upload_of(CARD, card.encode("utf-8"))
    return replace(selection, uploads=tuple(found.values()))


def _found(state: State | None, repo_id: str) -> State:
    if state is None:
        raise ResourceError(f"{repo_id}: was there a moment ago and is not now; somebody moved or deleted it. Run it again.")
    return state


def _removed(state: State, selection: Selection) -> list[str]:
    kept = {each.name for each in selection.uploads}
    return sorted(name for name in state.files if is_stale(name, kept))


def _title(target: Target, selection: Selection) -> str:
    return target.message or f"Upload with hf_shrink ({selection.digest[:12]})"


def _committed(hub: Hub, target: Target, selection: Selection, before: State) -> State:
    """One commit on ``before``, however often it has to be tried; the state after it, compared with what was sent.

    A commit whose answer was lost has come to be or has not: the branch itself says which, so it is looked at before each try.
    """
    state, tries = before, 0
    while True:
        changed, removed = state.differs(selection.uploads), _removed(state, selection)
        if not changed and not removed:
            return state
        if state.sha != before.sha:
            raise ResourceError(
                f"{hub.repo_id}: {target.branch} moved to {state.sha[:12]} while this was sent; nothing of ours is in it.\n"
                "Run the same command again to publish on top of that."
            )
        try:
            sha = _send(hub, target, selection, changed, removed, before.sha)
            return _compared(_found(hub.state(sha), hub.repo_id), selection, hub.repo_id)
        except Moved as conflict:
            problem = Again(f"{target.branch} is being changed ({conflict})")
        except Again as again:
            problem = again
        tries += 1
        state = _found(hub.state(target.branch), hub.repo_id)
        if state.sha == before.sha:
            hub.patience.pause(tries, problem, f"{hub.repo_id}: nothing was published")


def _send(
    hub: Hub, target: Target, selection: Selection, changed: Sequence[Upload], removed: Sequence[str], parent: str
) -> str:
    """The bytes, then the commit; its sha."""
    adds = hub.upload(changed, revision=target.branch, create_pr=target.create_pr)
    title = _title(target, selection)
    return hub.commit(adds, removed, title=title, revision=target.branch, parent=parent, create_pr=target.create_pr)


def _as_pull_request(hub: Hub, target: Target, selection: Selection, before: State) -> Pushed:
    """Open one, unless ``main`` or an open one of ours holds the same files."""
    changed, removed = before.differs(selection.uploads), _removed(before, selection)
    if not changed and not removed:
        return _outcome(hub, target, selection, before, "unchanged", before.sha)
    found, tries = hub.pull_request(_title(target, selection), selection.uploads), 0
    status = "unchanged" if found else "published"
    while found is None:
        problem = None
        try:
            _send(hub, target, selection, changed, removed, before.sha)
        except Moved as conflict:
            raise ResourceError(f"{hub.repo_id}: main moved while this was sent ({conflict}); run it again.") from None
        except Again as again:
            problem = again
        found = hub.pull_request(_title(target, selection), selection.uploads)
        if found is None and problem is not None:
            tries += 1
            hub.patience.pause(tries, problem, f"{hub.repo_id}: no pull request was opened")
        elif found is None:
            raise IntegrityError(f"{hub.repo_id}: the pull request does not hold what was sent; close it and run it again.")
    number, sha = found
    return replace(_outcome(hub, target, selection, before, status, sha), url=f"{_url(hub)}/discussions/{number}")


def _compared(state: State, selection: Selection, repo_id: str) -> State:
    if wrong := state.differs(selection.uploads):
        raise IntegrityError(
            f"{repo_id}: at {state.sha[:12]}, {len(wrong)} files are not what was sent, first {wrong[0].name}.\n"
            "Run the same command again; if it stays so, do not use that commit."
        )
    return state


def _check_tag(hub: Hub, tag: str, selection: Selection) -> None:
    """A tag that is there already has to name the same files: it is not moved."""
    sha = hub.tag_target(tag)
    there = None if sha is None else hub.state(sha)
    if there is not None and there.differs(selection.uploads):
        raise RecipeError(
            f"{hub.repo_id}: tag {tag!r} names other files, at {there.sha[:12]}, and stays there.\n"
            "Choose another tag, or delete that one on the Hub."
        )


def _url(hub: Hub) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{hub.repo_id}"


def _outcome(
    hub: Hub, target: Target, selection: Selection, before: State | None, status: str, commit: str | None = None
) -> Pushed:
    state = before or State("", not target.public, {})
    return Pushed(
        repo_id=hub.repo_id,
        url=_url(hub) if commit is None else f"{_url(hub)}/commit/{commit}",
        commit=commit,
        status=status,
        visibility="private" if state.private else "public",
        branch="pull request" if target.create_pr else target.branch,
        tag=target.tag,
        files={each.name: each.size for each in selection.uploads},
        sends=tuple(each.name for each in state.differs(selection.uploads)),
        removes=tuple(_removed(state, selection)),
        left_out=selection.left_out,
    )
