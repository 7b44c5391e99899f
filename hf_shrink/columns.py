"""Columns of a training row: those that say what is right, and those that only a teacher with another tokenizer reads."""

LABELS = ("labels", "start_positions", "end_positions")
"""What is right: the class, the tokens, or where an answer begins and ends."""

TEACHER_IDS = "teacher_input_ids"
"""The row's text in the teacher's tokens, ``[length of the teacher's row]``."""

TEACHER_MASK = "teacher_attention_mask"
"""1 at these tokens, 0 at padding."""

TEACHER_PLACES = "teacher_positions"
"""At each position of the student's row the position of the teacher's row that is compared with it; -1 where there is none."""

TEACHER_COLUMNS = (TEACHER_IDS, TEACHER_MASK, TEACHER_PLACES)
