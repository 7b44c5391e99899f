"""What libraries say when a model cannot be loaded, in our words: what failed and one thing to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError

from hf_shrink.errors import IntegrityError, MismatchError, ResourceError, SecurityError, ShrinkError
from hf_shrink.lines import first_line


@contextmanager
def explained(what: str, revision: str | None) -> Iterator[None]:
    """Errors of the libraries below become ours: what failed and one thing to do, without their paths and addresses."""
    try:
        yield
    except ShrinkError:
        raise
    except SafetensorError as error:
        raise IntegrityError(f"{what}: its weights file is damaged ({error}). Download or copy it again.") from error
    except ImportError as error:
        raise ResourceError(f"{what}: a package is missing: {first_line(error)}") from error
    except OSError as error:
        raise ResourceError(f"{what}: {_reason(error, revision)}") from error
    except (ValueError, KeyError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise SecurityError(f"{what}: it needs code from its own repository, which hf_shrink never runs.") from error
        raise MismatchError(f"{what}: {first_line(error)}") from error


def _reason(error: BaseException, revision: str | None) -> str:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(c, GatedRepoError) for c in causes):
        return "the repository is gated. Accept its terms on the Hub, then run: hf auth login"
    if any(isinstance(c, RevisionNotFoundError) for c in causes):
        return f"there is no revision {revision!r}. Name a commit, tag or branch that exists."
    if any(isinstance(c, RepositoryNotFoundError) for c in causes):
        return "no such repository, or a private one. Check the name, or set HF_TOKEN."
    if any(isinstance(c, LocalEntryNotFoundError) for c in causes) or "couldn't connect" in str(error):
        return "not in the cache, and the Hub is off or out of reach. Download it once while online, or name a folder."
    if "safetensors" in str(error):
        return "no model.safetensors in it; other formats can run code and are not read. Convert it to safetensors."
    return first_line(error)
