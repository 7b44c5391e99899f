"""Vocabularies of two sizes under one tokenizer: what is beyond its last token is padding, and nothing is taught there."""

from hf_shrink.errors import MismatchError

ANOTHER_TOKENIZER = "Use a teacher with the student's tokenizer, or, for causal language models, the loss uld."
"""What to do where tokens differ."""


def shared_words(student: int, teacher: int, tokens: int | None) -> int:
    """How many of the words both models have.

    Args:
        student: words of the student's logits.
        teacher: words of the teacher's logits.
        tokens: one more than the highest id of the tokenizer; None where it is not known.

    Raises:
        MismatchError: the smaller one would cut a token, or nobody can tell.
    """
    if student == teacher:
        return student
    sizes = f"distillation: the student has {student} words, the teacher {teacher}"
    if tokens is None:
        raise MismatchError(f"{sizes}; which of them are padding is not known.\nPass the tokenizer as processing_class.")
    if tokens > min(student, teacher):
        raise MismatchError(
            f"{sizes}, the tokenizer {tokens} tokens: cutting to {min(student, teacher)} would lose tokens.\n"
            f"{ANOTHER_TOKENIZER}"
        )
    return min(student, teacher)
