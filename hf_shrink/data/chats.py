"""Chats through a tokenizer's own template."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_shrink.data.rows import Rows
from hf_shrink.errors import MismatchError
from hf_shrink.lines import first_line

_MARK = re.compile(r"\{%-?\s*generation\b")
_IGNORED = -100


def check_chats(rows: Rows) -> None:
    """Raise MismatchError where a row is no list of messages with ``role`` and ``content`` as text, or an empty one."""
    for i, messages in enumerate(rows.others["messages"].to_pylist()):
        if not isinstance(messages, list) or not messages:
            raise MismatchError(f"{rows.where}: row {i}: {_shown(messages)} is no chat. Give a list of {{role, content}}.")
        for message in messages:
            keys = message if isinstance(message, dict) else {}
            if not all(isinstance(keys.get(key), str) for key in ("role", "content")):
                raise MismatchError(
                    f"{rows.where}: row {i}: message {_shown(message)} needs role and content, both text. Correct the row."
                )


def marks_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says which tokens are the assistant's."""
    template = tokenizer.chat_template
    return isinstance(template, str) and _MARK.search(template) is not None


def chat_tokens(
    chats: Sequence[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, role: str, *, only_assistant: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of each chat as the template writes it.

    Args:
        chats: lists of messages.
        tokenizer: with a chat template.
        role: names the split in errors.
        only_assistant: label everything else -100; needs a template that marks what the assistant says.

    Raises:
        MismatchError: there is no template, or it refuses a chat.
    """
    if not tokenizer.chat_template:
        raise MismatchError(
            "tokenizer: no chat template, so chats cannot be written out.\n"
            "Use the tokenizer of a chat model, or a column of texts (data.text_column)."
        )
    for i, messages in enumerate(chats):
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            found: Any = tokenizer.apply_chat_template(
                plain, tokenize=True, return_dict=True, return_assistant_tokens_mask=only_assistant
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise MismatchError(f"{role} row {i}: the chat template refuses it: {first_line(error)}") from None
        ids = list(found["input_ids"])
        if not ids:
            raise MismatchError(f"{role} row {i}: the chat has no token. Remove the row.")
        if only_assistant:
            masks = found["assistant_masks"]
            yield ids, [token if said else _IGNORED for token, said in zip(ids, masks, strict=True)]
        else:
            yield ids, list(ids)


def _shown(value: object) -> str:
    return repr(value)[:60]
