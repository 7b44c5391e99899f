"""Rows in the tokens of two models. What these prevent: a teacher that is asked about the token before, or about the prompt."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_shrink.columns import TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES
from hf_shrink.data.two_tokenizers import both_collator, in_both
from hf_shrink.errors import MismatchError
from tests.tiny import VOCABULARY, other_tokenizer, tiny_lm_tokenizer, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}"
)


def texts(*found: str) -> Dataset:
    return Dataset.from_dict({"text": list(found)})


def test_each_reads_the_text_by_itself_and_the_nth_token_stands_beside_the_nth():
    """By hand: both say ``red house door``, one in words, one in halves of words; each closes it with its own end of text."""
    ours, theirs = tiny_lm_tokenizer(), other_tokenizer()
    (row,) = in_both(texts("red house door"), ours, theirs, 8)
    assert row["input_ids"] == [*(VOCABULARY[w] for w in ("red", "house", "door")), ours.eos_token_id] == row["labels"]
    assert theirs.convert_ids_to_tokens(row[TEACHER_IDS]) == ["re", "##d", "hou"]  # the fourth predicts no fourth token of ours
    assert row[TEACHER_PLACES] == [0, 1, 2, -1] and row[TEACHER_MASK] == [1, 1, 1]


def test_a_token_before_the_text_is_none_of_it():
    """A teacher with a beginning of text would be one token behind all along."""
    theirs = tiny_tokenizer()  # [CLS] text [SEP]
    theirs.eos_token = "[SEP]"
    (row,) = in_both(texts("red house door"), tiny_lm_tokenizer(), theirs, 8)
    assert row[TEACHER_IDS][0] == VOCABULARY["[CLS]"] and row[TEACHER_PLACES] == [1, 2, 3, -1]
    ours, theirs = theirs, tiny_lm_tokenizer()
    (row,) = in_both(texts("red house door"), ours, theirs, 8)
    assert row["input_ids"][0] == VOCABULARY["[CLS]"]
    assert row[TEACHER_PLACES] == [-1, 0, 1, 2, -1]  # nothing stands before the teacher's first token


def test_rows_are_cut_and_nothing_beyond_the_cut_is_asked():
    (row,) = in_both(texts("red house door lamp song"), tiny_lm_tokenizer(), other_tokenizer(), 3)
    assert len(row["input_ids"]) == 3 and row[TEACHER_PLACES] == [0, 1, -1] and len(row[TEACHER_IDS]) == 2


@pytest.mark.parametrize("masked", [True, False])
def test_the_teachers_places_move_with_the_students_tokens(masked):
    """Padded on the left by a collator of one's own, each token would learn what the teacher said of one further on."""
    ours, theirs = tiny_lm_tokenizer(), other_tokenizer()
    data = list(in_both(texts("red house door", "blue"), ours, theirs, 8))

    def left(rows):
        width = max(len(row["input_ids"]) for row in rows)
        gaps = [[0] * (width - len(row["input_ids"])) for row in rows]
        batch = {
            name: [gap + row[name] for gap, row in zip(gaps, rows, strict=True)] for name in ("input_ids", "attention_mask")
        }
        found = {name: torch.tensor(value) for name, value in batch.items()}
        return found if masked else {"input_ids": found["input_ids"]}

    batch = both_collator(ours, theirs, left)(data)
    assert batch[TEACHER_PLACES].tolist() == [[0, 1, 2, -1], [-1, -1, 0, -1]]
    assert both_collator(ours, theirs)(data)[TEACHER_PLACES].tolist() == [[0, 1, 2, -1], [0, -1, -1, -1]]
    with pytest.raises(MismatchError, match="row 0 of a batch has 4 tokens, of which `ours` gives others"):
        both_collator(ours, theirs, lambda rows: {"input_ids": left(rows)["input_ids"][:, :3]})(data)


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    words = {w: i for i, w in enumerate((*VOCABULARY, "user", "assistant"))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]")
    tokenizer.chat_template = template
    return tokenizer


CHAT = [
    {"role": "user", "content": "red"},
    {"role": "assistant", "content": "house door"},
    {"role": "user", "content": "blue"},
    {"role": "assistant", "content": "lamp"},
]


def test_each_turn_of_the_assistant_is_counted_by_itself():
    """Templates differ: counted over the whole chat, the second turn would be set against the first one's words."""
    longer = TEMPLATE.replace("{{ m['role'] }} ", "{{ m['role'] }} song ")
    data = Dataset.from_dict({"messages": [CHAT]})
    (row,) = in_both(data, chat_tokenizer(TEMPLATE), chat_tokenizer(longer), 32)
    # user red assistant HOUSE DOOR user blue assistant LAMP | user song red assistant song HOUSE DOOR user song blue ...
    assert [(i, p) for i, p in enumerate(row[TEACHER_PLACES]) if p >= 0] == [(2, 4), (3, 5), (7, 11), (8, 12)]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (TEMPLATE, TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", ""), "of the teacher does not mark"),
        (TEMPLATE, TEMPLATE.replace("messages", "messages[:2]"), "has 2 stretches .* the teacher 1"),
    ],
    ids=["unmarked", "turns"],
)
def test_chats_that_cannot_be_compared_turn_by_turn_are_refused(ours, theirs, message):
    data = Dataset.from_dict({"messages": [CHAT]})
    with pytest.raises(MismatchError, match=message):
        in_both(data, chat_tokenizer(ours), chat_tokenizer(theirs), 32)


def test_batches_pad_each_model_to_its_own_longest():
    """A place beyond the teacher's row would ask about padding."""
    ours, theirs = tiny_lm_tokenizer(), other_tokenizer()
    rows = in_both(texts("red house", "red house door lamp"), ours, theirs, 8)
    batch = both_collator(ours, theirs)(list(rows))
    assert batch["input_ids"].shape == (2, 5) == batch[TEACHER_PLACES].shape and batch[TEACHER_IDS].shape == (2, 4)
    assert batch[TEACHER_MASK].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch[TEACHER_PLACES].tolist() == [[0, 1, -1, -1, -1], [0, 1, 2, 3, -1]]
    assert torch.equal(batch["labels"][0], torch.tensor([*rows[0]["input_ids"], -100, -100]))
    plain = both_collator(ours, theirs)([{key: rows[0][key] for key in ("input_ids", "attention_mask", "labels")}])
    assert plain.keys() == {"input_ids", "attention_mask", "labels"}


def test_nothing_to_compare_is_said():
    """A term that is 0 all along looks like one that has been learnt."""
    theirs = tiny_lm_tokenizer()
    with pytest.raises(MismatchError, match="0 tokens to compare in 1 rows"):
        in_both(texts("red"), _framed(), theirs, 2)


def _framed() -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.eos_token = "[SEP]"
    return made
