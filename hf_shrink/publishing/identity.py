"""Who and where: traces of the machine that made a model, looked for in every text before it is published.

The host name is looked for anywhere, as a whole word, where it has a digit, a dash or a dot and at least six characters:
``mercury`` is a word of many texts, ``gpu-node-7`` is none. The user name is looked for where it leaks: as a part of a path or
before an ``@``, outside of addresses on the web; names that many machines share (``root``, ``ubuntu``) say nothing. The current
folder is looked for where its path has at least two parts. Vocabularies are left out: their words are nobody's.
"""

import getpass
import re
import socket
from collections.abc import Iterator
from pathlib import Path

VOCABULARIES = frozenset({"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"}) | {
    "sentencepiece.bpe.model"
}
_SHARED = frozenset(
    {"root", "user", "admin", "ubuntu", "debian", "runner", "nobody", "jovyan", "vscode", "ec2-user", "app", "test", "home"}
)
_URL = re.compile(rb"https?://[^\s\"'<>)\]]+")
_HOST = re.compile(r"(?=.*[\d.-])\w[\w.-]{5,}")
_LONGEST = 1_000_000  # of one text; what we and transformers write is far shorter


def trace_in(raw: bytes) -> str | None:
    """What ``raw`` tells of this machine, in words; None where it tells nothing."""
    text = _URL.sub(b"", raw[:_LONGEST])
    return next((what for what, pattern in _traces() if pattern.search(text)), None)


def _traces() -> Iterator[tuple[str, re.Pattern[bytes]]]:
    for host in {name := socket.gethostname(), name.split(".")[0]}:
        if _HOST.fullmatch(host) and not host.startswith("localhost"):
            yield "this machine's name", re.compile(rb"(?<![\w.-])" + re.escape(host.encode()) + rb"(?![\w-])", re.IGNORECASE)
    user = _user()
    if len(user) > 2 and user.lower() not in _SHARED:
        word = re.escape(user.encode())
        yield "your user name", re.compile(rb"[/\\~]" + word + rb"(?=[/\\])|(?<![\w.-])" + word + rb"@")
    here = Path.cwd()
    if len(here.parts) > 2:
        yield "the path of the current folder", re.compile(re.escape(str(here).encode()) + rb"(?![\w.-])")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry in the system's list, as in some containers
        return ""
