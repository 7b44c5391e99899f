"""References: found without running code, never outside their package."""

import sys
from pathlib import Path

import pytest

from hf_shrink.errors import RecipeError, ResourceError, SecurityError
from hf_shrink.models.reference import check_source, resolve, shown


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that would fail loudly if it were imported."""
    root = tmp_path / "site" / "trap_package"
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_a_package_is_found_without_being_imported(package: Path):
    """Naming a model must not run the package's code."""
    assert resolve("package:trap_package/model") == str(package / "model")
    assert "trap_package" not in sys.modules


@pytest.mark.parametrize("reference", ["google-bert/bert-base-uncased", "./folder", "gpt2", "package"])
def test_other_references_come_back_as_they_are(reference: str):
    assert resolve(reference) == reference


@pytest.mark.parametrize("inside", ["../secret", "model/../../secret", "/etc"])
def test_paths_out_of_the_package_are_refused(package: Path, inside: str):
    (package.parent / "secret").mkdir()
    with pytest.raises(SecurityError, match="leaves the package"):
        resolve(f"package:trap_package/{inside}")


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path):
    (tmp_path / "secret").mkdir()
    (package / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(SecurityError):
        resolve("package:trap_package/link")


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(ResourceError, match="pip install no-such-package"):
        resolve("package:no_such_package/model")


def test_a_folder_that_is_not_in_the_package_is_named(package: Path):
    with pytest.raises(ResourceError, match="no folder 'other'"):
        resolve("package:trap_package/other")


@pytest.mark.parametrize("reference", ["package:", "package:/model", "package:a.b/model"])
def test_what_is_no_package_name_is_refused(reference: str):
    with pytest.raises(RecipeError, match="no package name"):
        resolve(reference)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path):
    """It would be ignored, and the run would claim a revision that it never had."""
    with pytest.raises(RecipeError, match="revision 'main' would be ignored"):
        check_source(str(tmp_path), "main")


def test_a_path_without_a_folder_is_not_taken_for_a_hub_id(tmp_path: Path):
    with pytest.raises(ResourceError, match="no such folder"):
        check_source(str(tmp_path / "gone"), None)


def test_the_home_folder_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert shown("/home/somebody/model") == "'~/model'"


def test_a_module_without_a_spec_is_no_package():
    """`find_spec` raises a plain ValueError for it."""
    with pytest.raises(ResourceError, match="not installed"):
        resolve("package:__main__/model")
