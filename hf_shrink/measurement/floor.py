"""The floor: what counting words reaches on the same task. A model below it is not worth its size."""

from collections.abc import Callable, Mapping
from typing import Any

from hf_shrink.errors import MismatchError, ResourceError
from hf_shrink.lines import first_line
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.tables import pick

FLOOR_TITLE = "TF-IDF + logistic regression"
_MANY = 1000


def floor(name: str, train: Any, test: Any) -> Predictions:
    """Fit the plain baseline ``name`` on ``train`` and predict ``test``; both with ``text`` [, ``text_pair``] and ``label``.

    Raises:
        ResourceError: scikit-learn is not installed.
        MismatchError: ``train`` has fewer than two classes, or no words.
    """
    return pick(FLOORS, name, "measurement.floor")(train, test)


def tfidf(train: Any, test: Any) -> Predictions:
    """Logistic regression on TF-IDF of words, pairs of words and pieces of 3 to 5 letters.

    Words keep single letters and digits (codes and sizes carry meaning); pieces see inside rare words. Of many texts,
    pieces that occur once are left out: they cost about half of the time and hardly ever decide.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError:
        raise ResourceError(
            "measurement.floor: 'tfidf' needs scikit-learn, which is not installed: pip install 'hf_shrink[baseline]'"
        ) from None
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    rare = 2 if len(train) > _MANY else 1
    pieces = TfidfVectorizer(sublinear_tf=True, ngram_range=(3, 5), analyzer="char_wb", min_df=rare)
    model = make_pipeline(make_union(words, pieces), LogisticRegression(C=10.0, max_iter=1000))
    try:
        model.fit(_texts(train), train["label"])
    except ValueError as error:
        raise MismatchError(f"measurement.floor: {first_line(error)}") from error
    return Predictions.of(model.predict(_texts(test)), test["label"])


FLOORS: Mapping[str, Callable[[Any, Any], Predictions]] = {"tfidf": tfidf}


def _texts(dataset: Any) -> list[str]:
    if "text_pair" not in dataset.column_names:
        return list(dataset["text"])
    return [f"{first} {second}" for first, second in zip(dataset["text"], dataset["text_pair"], strict=True)]
