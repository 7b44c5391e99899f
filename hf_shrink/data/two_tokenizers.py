"""Texts in the tokens of two models: the student's rows, and beside each what a teacher with another tokenizer reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_shrink.columns import TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES
from hf_shrink.data.causal_lm import IGNORED, Document, documents, end_of_text, padded, unpacked
from hf_shrink.data.chats import marks_assistant
from hf_shrink.data.format import Collator
from hf_shrink.errors import MismatchError

_NOWHERE = -1


def in_both(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    role: str = "train",
) -> Dataset:
    """The student's rows, one a text, with the columns of ``hf_shrink.columns`` beside.

    Each tokenizer reads the whole text by itself. The n-th token of one is compared with the n-th of the other, as long as
    both have one (arXiv:2402.12030); tokens put before a text do not count as its first. In chats, of which only what the
    assistant says is learnt, each of its turns is counted by itself. Of the teacher's row what no position needs is left out.

    Args:
        data: ``text``, or ``messages``, a chat a row.
        tokenizer: of the student.
        teacher_tokenizer: of the teacher.
        max_length: tokens of the student's rows; what exceeds it is cut off.
        role: names the split in errors.

    Raises:
        MismatchError: a tokenizer without end of text, a chat template that does not mark what the assistant says or gives
            other turns, a text without tokens, or nothing to compare.
    """
    both, chats = (tokenizer, teacher_tokenizer), "messages" in data.column_names
    for who, each in zip(("student", "teacher"), both, strict=True):
        if chats and not marks_assistant(each):
            raise MismatchError(
                f"{role}: the chat template of the {who} does not mark what the assistant says, so chats cannot be compared "
                "turn by turn.\nUse one that does ({% generation %}), or texts."
            )
    read = [
        list(unpacked(documents(data, each, role, chats=chats, only_assistant=chats), end_of_text(each), None)) for each in both
    ]
    rows = []
    for i, (ours, theirs) in enumerate(zip(*read, strict=True)):
        turns = [_turns(row, each) for row, each in zip((ours, theirs), both, strict=True)]
        if len(turns[0]) != len(turns[1]):
            raise MismatchError(
                f"{role} row {i}: the student has {len(turns[0])} stretches of tokens to learn, the teacher {len(turns[1])}.\n"
                "Remove the row, or use a chat template that keeps all turns."
            )
        ids, labels = ours[0][:max_length], ours[1][:max_length]
        if any(label != IGNORED for label in labels[1:]):
            rows.append(_row(ids, labels, theirs[0], _places(turns[0], turns[1], len(ids))))
    if not any(place != _NOWHERE for row in rows for place in row[TEACHER_PLACES]):
        raise MismatchError(f"{role}: 0 tokens to compare in {len(data)} rows. Give longer texts.")
    return Dataset.from_list(rows)


def both_collator(
    tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase, ours: Collator | None = None
) -> Collator:
    """Pads rows of ``in_both``, each model's to its own longest; rows without the teacher's columns as ``ours`` does.

    Args:
        tokenizer: of the student.
        teacher_tokenizer: of the teacher.
        ours: pads the student's columns, on either side; None pads them behind the end.

    Raises:
        MismatchError: of the collator, where ``ours`` gives other tokens than a row has.
    """
    pad, their_pad = (
        (each.pad_token_id if isinstance(each.pad_token_id, int) else 0) for each in (tokenizer, teacher_tokenizer)
    )
    return _Both(ours, pad, their_pad)


@dataclass(frozen=True)
class _Both:
    ours: Collator | None
    pad: int
    their_pad: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        fills = {"input_ids": self.pad, "attention_mask": 0, "labels": IGNORED}
        batch = padded(rows, fills=fills) if self.ours is None else dict(self.ours(rows))
        if TEACHER_IDS not in rows[0]:
            return batch
        theirs = [{"input_ids": row[TEACHER_IDS], "attention_mask": row[TEACHER_MASK]} for row in rows]
        found = padded(theirs, fills={"input_ids": self.their_pad, "attention_mask": 0})
        places = torch.full_like(batch["input_ids"], _NOWHERE)
        for i, row in enumerate(rows):
            start, length = _start(batch, i, row["input_ids"]), len(row["input_ids"])
            places[i, start : start + length] = torch.tensor(row[TEACHER_PLACES])
        return batch | {TEACHER_IDS: found["input_ids"], TEACHER_MASK: found["attention_mask"], TEACHER_PLACES: places}


def _start(batch: Mapping[str, Tensor], i: int, ids: list[int]) -> int:
    """The column at which the tokens of a row begin, after it was padded."""
    found = batch["input_ids"][i].tolist()
    mask = batch["attention_mask"][i].tolist() if "attention_mask" in batch else None
    starts = [0, len(found) - len(ids)] if mask is None else [mask.index(1) if 1 in mask else 0]
    for start in starts:
        if start >= 0 and found[start : start + len(ids)] == ids:
            return start
    raise MismatchError(
        f"both_collator: row {i} of a batch has {len(ids)} tokens, of which `ours` gives others; where the teacher's stand "
        "beside them is not known.\nPass a collator that only pads."
    )


def _row(ids: list[int], labels: list[int], theirs: list[int], places: list[int]) -> dict[str, list[int]]:
    needed = theirs[: max(*places, 0) + 1]  # nothing that comes later changes what is said before
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": labels,
        TEACHER_IDS: needed,
        TEACHER_MASK: [1] * len(needed),
        TEACHER_PLACES: places,
    }


def _turns(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[range]:
    """Where the tokens to learn stand: stretches without a gap, what the tokenizer puts before a text left out."""
    ids, labels = document
    learnt = [label != IGNORED for label in labels]
    if len(ids) > 1 and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        learnt[0] = False
    starts = [i for i, here in enumerate(learnt) if here and (i == 0 or not learnt[i - 1])]
    ends = [i + 1 for i, here in enumerate(learnt) if here and (i + 1 == len(learnt) or not learnt[i + 1])]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _places(ours: Sequence[range], theirs: Sequence[range], length: int) -> list[int]:
    """At each of our positions theirs, where the token after both is the same one of the same stretch; -1 elsewhere."""
    places = [_NOWHERE] * length
    for one, other in zip(ours, theirs, strict=True):
        for token, counterpart in zip(one, other, strict=False):
            if 0 < token < length and counterpart > 0:
                places[token - 1] = counterpart - 1
    return places
