"""Pairs that would train without an error and learn nonsense."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_shrink.errors import MismatchError
from hf_shrink.models.pairs import Pair, check_pair
from tests.tiny import COLOURS, tiny_classifier, tiny_tokenizer


def check(student_labels, teacher_labels, student_tokenizer=None, teacher_tokenizer=None) -> Pair:
    return check_pair(
        tiny_classifier(labels=student_labels),
        tiny_classifier(labels=teacher_labels),
        student_tokenizer=student_tokenizer or tiny_tokenizer(),
        teacher_tokenizer=teacher_tokenizer or tiny_tokenizer(),
    )


def test_equal_pairs_need_nothing():
    assert check(COLOURS, COLOURS) == Pair(None, ())


def test_other_numbers_of_labels_are_refused_with_both_and_their_names():
    """[2, 3] logits against [2, 1] broadcast in silence."""
    with pytest.raises(MismatchError) as caught:
        check(("a",), COLOURS)
    assert "3 labels (red, green, blue)" in str(caught.value) and "the student 1 (a)" in str(caught.value)


def test_labels_in_another_order_are_reordered_by_name():
    """By index, the student would learn green for red."""
    teacher_labels = ("blue", "red", "green")
    pair = check(COLOURS, teacher_labels)
    logits = torch.tensor([[10.0, 20.0, 30.0]])  # blue, red, green
    assert logits[..., list(pair.label_order)].tolist() == [[20.0, 30.0, 10.0]]  # red, green, blue
    assert len(pair.notes) == 1 and "reordered" in pair.notes[0]


def test_other_names_are_refused_and_named():
    with pytest.raises(MismatchError, match=r"only the student has blue; only the teacher has pink"):
        check(COLOURS, ("red", "green", "pink"))


def test_names_against_no_names_are_refused():
    """LABEL_0 may be any class: trusting its place would be a guess."""
    with pytest.raises(MismatchError, match="order is unknown"):
        check(COLOURS, ("LABEL_0", "LABEL_1", "LABEL_2"))


def test_no_names_on_both_sides_go_by_place():
    plain = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert check(plain, plain) == Pair(None, ())


def test_repeated_names_are_refused():
    with pytest.raises(MismatchError, match="label names repeat"):
        check(COLOURS, ("red", "red", "blue"))


def test_conflicting_and_missing_tokens_are_counted_and_the_first_is_named():
    teacher = tiny_tokenizer()
    teacher.add_tokens(["extra", "more"])
    student = tiny_tokenizer()
    student.add_tokens(["foo", "extra"])
    with pytest.raises(MismatchError, match="1 conflicting ids, 2 missing; first: 'extra' 21 vs 20"):
        check(COLOURS, COLOURS, student, teacher)
    with pytest.raises(MismatchError, match="0 conflicting ids, 1 missing; first: 'foo' 20 vs missing"):
        one = tiny_tokenizer()
        one.add_tokens(["foo"])
        check(COLOURS, COLOURS, one, tiny_tokenizer())


def word_tokenizer(normalizer: normalizers.Normalizer | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "CATS": 1, "cats": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_one_vocabulary_with_other_casing_is_refused():
    """Cased text reaches a teacher that has never seen a capital letter."""
    with pytest.raises(MismatchError, match="splits a text otherwise"):
        check(COLOURS, COLOURS, word_tokenizer(normalizers.Lowercase()), word_tokenizer(None))


def test_one_vocabulary_with_other_special_tokens_is_refused():
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(MismatchError, match="from token 0"):
        check(COLOURS, COLOURS, tiny_tokenizer(), bare)


def test_a_student_is_not_its_own_teacher():
    model = tiny_classifier()
    with pytest.raises(MismatchError, match="the student itself"):
        check_pair(model, model, student_tokenizer=tiny_tokenizer(), teacher_tokenizer=tiny_tokenizer())
