"""One file of a published model, from its folder or from the Hub."""

from pathlib import Path

from hf_shrink.errors import MismatchError, ResourceError
from hf_shrink.lines import first_line, without_home

RECIPE = "hf_shrink_recipe.yaml"
REPORT = "hf_shrink_report.json"


def stored_file(reference: str | Path, name: str, *, revision: str | None = None) -> Path:
    """Where ``name`` of a model lies on this machine, downloaded if need be.

    Args:
        reference: a folder, or ``owner/name`` on the Hub.
        name: of the file.
        revision: commit, tag or branch on the Hub.

    Raises:
        MismatchError: the model has no such file. ResourceError: it is not here and cannot be had.
    """
    folder, shown = Path(reference), without_home(str(reference))
    if folder.is_dir():
        if not (folder / name).is_file():
            raise MismatchError(f"{shown}: holds no {name}; only a run of hf_shrink writes one.")
        return folder / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(reference), name, revision=revision))
    except LocalEntryNotFoundError:
        raise ResourceError(f"{shown}: not on this machine, and the Hub cannot be reached. Try again online.") from None
    except EntryNotFoundError:
        raise MismatchError(f"{shown}: holds no {name}; only a run of hf_shrink writes one.") from None
    except HFValidationError:
        raise ResourceError(f"{shown}: no such folder, and no name on the Hub (owner/name).") from None
    except (OSError, ValueError) as error:
        raise ResourceError(f"{shown}: cannot be had from the Hub: {first_line(error)}") from None
