"""Where a model is published to, and whether that is possible and meant: asked before anything is sent."""

from dataclasses import dataclass

from hf_shrink.errors import RecipeError, ResourceError, SecurityError
from hf_shrink.lines import few
from hf_shrink.publishing.hub import Hub, State, check_id
from hf_shrink.publishing.patience import Patience


@dataclass(frozen=True)
class Target:
    """Where to, and how.

    Attributes:
        repo_id: ``owner/name``.
        public: make a new repository public, or publish into one that is.
        create_pr: open a pull request instead of moving ``main``.
        revision: branch to commit to, made where it is missing; None is ``main``.
        tag: name that the commit gets.
        message: title of the commit; None says what is in it.
    """

    repo_id: str
    public: bool = False
    create_pr: bool = False
    revision: str | None = None
    tag: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        check_id(self.repo_id)
        if self.create_pr and (self.revision or self.tag):
            other = "revision" if self.revision else "tag"
            raise RecipeError(
                f"create_pr and {other}: a pull request goes to main and is tagged when it is merged; choose one."
            )
        if self.revision is not None and (not self.revision or self.revision.startswith("refs/") or " " in self.revision):
            raise RecipeError(f"revision {self.revision!r}: name a branch, e.g. int8.")

    @property
    def branch(self) -> str:
        """The branch that the commit goes to, or starts from."""
        return self.revision or "main"


def preflight(target: Target, *, token: str | None = None, time_limit: float = 300.0) -> None:
    """Everything about the Hub that can be wrong before there is a folder: for work that takes long and publishes at its end.

    Makes the repository where it is missing, as nothing else shows that the token may.

    Raises:
        ShrinkError: as ``push``.
    """
    hub = Hub(target.repo_id, token, Patience(time_limit))
    if allowed(hub, target) is None:
        hub.create(public=target.public)
        allowed(hub, target)


def allowed(hub: Hub, target: Target) -> State | None:
    """Refuse what would fail later; the state of ``main``, None where the repository is not there yet.

    Raises:
        ResourceError: no rights. SecurityError: it is public, and that was not asked for. RecipeError: it is private, and
            public was asked for; or the tag names something else.
    """
    who = hub.identity()
    if who.reads_only and not target.create_pr:
        raise ResourceError(f"{hub.repo_id}: the token of {who.name} may only read. Log in with one that may write.")
    state = hub.state()
    if state is None:
        if hub.repo_id.split("/")[0] not in who.spaces:
            raise ResourceError(
                f"{hub.repo_id}: not there, and {who.name} can make repositories under {few(who.spaces)} only; check the name."
            )
        return None
    if not target.create_pr:
        hub.may_write()
    if not state.private and not target.public:
        raise SecurityError(f"{hub.repo_id} is public: everybody would see the model at once. Ask for public if that is meant.")
    if state.private and target.public:
        raise RecipeError(
            f"{hub.repo_id} is private, and a push does not change that; do not ask for public, or change it there."
        )
    return state
