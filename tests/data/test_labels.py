"""Labels. What these prevent: a stray label that becomes a class, and two splits that count classes differently."""

import pyarrow as pa
import pytest

from hf_shrink.data.labels import encode
from hf_shrink.data.rows import Rows
from hf_shrink.errors import MismatchError


def rows(labels: list, names: tuple[str, ...] | None = None, where: str = "split 'train' of d") -> Rows:
    texts = pa.chunked_array([pa.array(["t"] * len(labels))])
    known = {} if names is None else {"label": names}
    return Rows(where, {"text": texts}, {"label": pa.chunked_array([pa.array(labels)])}, known)


def encoded(train: list, *others: list, names: tuple[str, ...] | None = None) -> tuple:
    found, indices = encode(rows(train, names), [rows(labels, names, "split 'test' of d") for labels in others])
    return found, [list(labels) for labels in indices]


def test_numbers_keep_their_value():
    assert encoded([1, 0, 2, 1], [2, 0]) == (("LABEL_0", "LABEL_1", "LABEL_2"), [[1, 0, 2, 1], [2, 0]])


def test_names_are_numbered_in_sorted_order_whatever_order_they_come_in():
    """An order by first appearance would differ between splits, and between runs on shuffled files."""
    assert encoded(["neg", "pos", "mid"], ["pos", "neg"]) == (("mid", "neg", "pos"), [[1, 2, 0], [2, 1]])


def test_names_of_the_source_keep_its_order():
    assert encoded([1, 0], names=("zebra", "ape")) == (("zebra", "ape"), [[1, 0]])
    assert encoded(["ape", "zebra"], names=("zebra", "ape")) == (("zebra", "ape"), [[1, 0]])


def test_booleans_are_names():
    assert encoded([True, False]) == (("false", "true"), [[1, 0]])


def test_numbers_in_one_split_and_text_in_another_are_all_text():
    """A CSV reader takes a column of digits for numbers and the same column with one word in it for text."""
    assert encoded(["1", "2", "x"], [2, 1]) == (("1", "2", "x"), [[0, 1, 2], [1, 0]])


@pytest.mark.parametrize(
    ("train", "others", "names", "message"),
    [
        ([0, 1, 2, 1, 0, 5], [], None, "split 'train' of d: row 5: label 5 not in 0..2"),
        ([0, 1, 2], [[0, 3]], None, "split 'test' of d: row 1: label 3 not in 0..2"),
        ([0, 1], [[-1, -1]], ("a", "b"), "split 'test' of d: row 0: label -1 not in 0..1 (2 such rows)"),
        ([0, 1, -100], [], None, "row 2: label -100 not in 0..1"),
        ([0, 5], [], ("a", "b", "c"), "row 1: label 5 not in 0..2"),
        ([1, 2], [], None, "no row has label 0, the lowest is 1; count classes from 0"),
        ([-100, -100], [], None, "the lowest is -100"),
        (["a", "b"], [["a", "c"]], None, "row 1: label 'c' is none of the 2 classes: 'a', 'b'"),
        ([0, 0], [], None, "2 rows, all of class 'LABEL_0'; at least 2 classes"),
        (["a", "a"], [], None, "all of class 'a'"),
        ([0.0, 1.0], [], None, "labels hold double; expected whole numbers from 0, or names"),
        ([[0], [1]], [], None, "labels hold list"),
    ],
)
def test_what_is_no_class_is_refused_with_its_row(train: list, others: list, names: tuple | None, message: str):
    with pytest.raises(MismatchError) as caught:
        encoded(train, *others, names=names)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
