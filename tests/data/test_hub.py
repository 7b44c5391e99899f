"""Data sets of the Hub, with the library's loader replaced: no test reaches the network."""

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_shrink.data import hub
from hf_shrink.data.config import DataConfig
from hf_shrink.errors import MismatchError, RecipeError, ResourceError, SecurityError, ShrinkError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def loaded(monkeypatch: pytest.MonkeyPatch, result: object, **config: object) -> tuple:
    """What read_hub gives when the library's loader gives ``result``, and what the loader was asked."""
    asked: list = []

    def load(*args: object, **named: object) -> object:
        asked.append((args, named, datasets.config.HF_HUB_OFFLINE))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(hub, "load_dataset", load)
    download = bool(config.pop("download", True))
    return hub.read_hub(DataConfig(dataset="org/data", **config), download=download), asked


def splits() -> DatasetDict:
    data = Dataset.from_dict({"text": ["a"], "label": [0]})
    data.info.download_checksums = {f"hf://datasets/org/data@{COMMIT}/train.csv": {"num_bytes": 1}}
    return DatasetDict(train=data)


def test_subset_and_revision_are_passed_on_and_the_commit_is_noted(monkeypatch: pytest.MonkeyPatch):
    """A branch moves: the report has to say which commit was read."""
    raw, asked = loaded(monkeypatch, splits(), subset="sst2", revision="main")
    assert asked[0][:2] == (("org/data", "sst2"), {"revision": "main"})
    assert raw.source == {"dataset": "org/data", "subset": "sst2", "revision": COMMIT}
    assert list(raw.splits) == ["train"]


@pytest.mark.parametrize("download", [True, False])
def test_without_download_the_library_is_offline_for_that_call_only(monkeypatch: pytest.MonkeyPatch, download: bool):
    """`plan` promises to download nothing."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for result in (splits(), ConnectionError("unreachable")):
        try:
            _, asked = loaded(monkeypatch, result, download=download)
            assert asked[0][2] is (not download)
        except ResourceError:
            pass
        assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionError("Couldn't reach"), ResourceError, "data set org/data (x) at revision r is not in the cache"),
        (datasets.exceptions.DatasetNotFoundError("gone"), ResourceError, "not in the cache"),
        (ValueError("BuilderConfig 'x' not found. Available: ['a', 'b']\nmore"), RecipeError, "Available: ['a', 'b']"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), SecurityError, "never run"),
        (datasets.exceptions.DatasetGenerationError("bad file"), MismatchError, "its files cannot be read: bad file"),
        (KeyError("odd"), ResourceError, "cannot be loaded"),
    ],
)
def test_errors_of_the_library_become_ours(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, message: str):
    with pytest.raises(ShrinkError) as caught:
        loaded(monkeypatch, error, subset="x", revision="r")
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_the_home_folder_is_not_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(ResourceError) as caught:
        loaded(monkeypatch, PermissionError(13, "Permission denied", "/home/somebody/.cache/x"))
    assert "somebody" not in str(caught.value)


def test_bars_are_silent_without_a_terminal_and_come_back(capfd: pytest.CaptureFixture[str]):
    """Bars in a log file are thousands of lines."""
    assert not datasets.utils.are_progress_bars_disabled()
    with hub.quiet_bars():
        Dataset.from_dict({"a": [1] * 100}).map(lambda row: row)
    assert not datasets.utils.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""
