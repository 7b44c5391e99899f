"""The few lines that use a published model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_shrink.errors import IntegrityError
from hf_shrink.files import sha256
from hf_shrink.markdown import clean
from hf_shrink.publishing.selection import is_published, is_weights
from hf_shrink.tasks import TASKS

_CALLS = {
    "token-classification": 'print(model("Put a text here.", aggregation_strategy="simple"))',
    "fill-mask": 'print(model(f"Put a text with {model.tokenizer.mask_token} here."))',
    "text-generation": 'print(model("Put the beginning of a text here.", max_new_tokens={tokens})[0]["generated_text"])',
}

_SCRIPTS = {
    "question-answering": """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")
question, text = "Put a question here.", "Put a text here that holds the answer."
inputs = tokenizer(question, text, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
places = inputs.pop("offset_mapping")[0]
with torch.no_grad():
    outputs = model(**inputs)
inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])  # an answer is of the text, not of the question,
fits = (inside[:, None] & inside[None, :]).triu()  # and does not end before it begins
sums = outputs.start_logits[0][:, None] + outputs.end_logits[0][None, :]
first, last = divmod(int(sums.masked_fill(~fits, float("-inf")).argmax()), len(inside))
print(text[places[first, 0] : places[last, 1]])""",
    "seq2seq": """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForSeq2SeqLM.from_pretrained("path/to/this/folder")
inputs = tokenizer("Put a text here.", return_tensors="pt")
inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={tokens})[0], skip_special_tokens=True))""",
    "sentence-embedding": """\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder")
inputs = tokenizer(["Put a text here.", "Put another text here."], padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs).last_hidden_state
mask = inputs["attention_mask"][..., None]
vectors = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1))
print(vectors @ vectors.T)  # how alike the texts are, from -1 to 1""",
}
"""For tasks that ``transformers.pipeline`` does not know, or answers otherwise."""


_MOST = {"text-generation": 40, "seq2seq": 64}
"""Tokens to generate; fewer where the model has few positions."""

_ROOM = 80
"""Positions that hold the longest of these texts, a token for each of its letters, and the tokens to generate."""

FOLDER = "path/to/this/folder"
"""What stands for the model where nobody knows its name on the Hub."""


def codes(report: Mapping[str, Any], repo_id: str | None = None, revision: str | None = None) -> dict[str, str]:
    """The code that a card shows: for the ``model`` where the task is known, and for the ``onnx`` graph where there is one.

    Args:
        report: plain data, as the run left it.
        repo_id: name on the Hub; None writes a folder to fill in.
        revision: branch there.
    """
    task, recovery = (report.get("recipe") or {}).get("task"), report.get("recovery") or {}
    if not task:
        return {}
    said = report.get("positions")
    positions = said if isinstance(said, int) else None
    found = {"model": usage(str(task), report.get("tier"), repo_id, revision, recovery.get("base_tier"), positions)}
    return {**found, "onnx": graph_usage(str(task), repo_id, revision)} if report.get("onnx") else found


def fingerprint(code: str) -> str:
    """SHA-256 of code without the name of a model, by which a report knows what was executed."""
    return hashlib.sha256(code.encode()).hexdigest()


def model_digest(folder: Path) -> str:
    """``digest_of`` the published weights and graphs in a folder; those of stages and checkpoints below are not the model."""
    inside = (path for place in ("", "adapter", "onnx") for path in (folder / place).glob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in inside)
    return digest_of({name: sha256(folder / name) for name in names if is_published(name) and is_weights(name)})


def digest_of(weights: Mapping[str, str]) -> str:
    """One SHA-256 over the names of weights and the sha256 of each, by which a report knows what the code ran on."""
    return hashlib.sha256("".join(f"{digest} {name}\n" for name, digest in sorted(weights.items())).encode()).hexdigest()


def proven(report: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """``report`` without what it says of executing code on another model than that of ``digest``."""
    told = report.get("usage") or {}
    return {**report, "usage": {piece: known for piece, known in told.items() if known.get("model") == digest}}


def check_rehearsed(usage: Mapping[str, Mapping[str, str]]) -> None:
    """Raises: IntegrityError: a piece of the card's code failed; the message has the line and what it raised."""
    failed = next((known["failed"] for known in usage.values() if "failed" in known), None)
    if failed is None:
        return
    raise IntegrityError(
        f"README.md: not made, because its code that uses the model fails on this folder at {failed}\n"
        "All other files are there. Repair the files that it names, or report it to hf_shrink, and run the recipe again."
    )


def executed(report: Mapping[str, Any], piece: str, repo_id: str | None = None) -> tuple[list[str], str]:
    """What the report says of executing a piece of ``codes``: the lines that it printed, and a sentence about it.

    Both are empty where it says nothing, or where it is about other code than this version writes.
    """
    known, code = (report.get("usage") or {}).get(piece) or {}, codes(report).get(piece, "")
    if known.get("sha256") != fingerprint(code):
        return [], ""
    if known.get("failed"):
        return [], "It failed when it was executed."
    if reason := known.get("not_executed"):
        return [], f"Not executed here: {clean(reason)}."
    lines = [clean(line) for line in str(known.get("printed") or "").splitlines()]
    told = "the comments at its end are what it printed" if lines else "it printed nothing"
    stood = " and its graph in that of the download" if piece == "onnx" and repo_id is not None else ""
    return lines, f"Executed when this card was made, with the folder in the place of the name{stood}; {told}."


def usage(
    task: str,
    tier: str | None,
    repo_id: str | None = None,
    revision: str | None = None,
    base_tier: str | None = None,
    positions: int | None = None,
) -> str:
    """Python that loads the model, where it can with ``transformers.pipeline``, and calls it once.

    Args:
        task: a name of ``TASKS``; another one is taken for the Hub's own word.
        tier: ``plugin`` where transformers must be told how to load it; ``adapter`` where one lies beside it.
        repo_id: name on the Hub; None writes a folder to fill in.
        revision: branch there; None is ``main``.
        base_tier: of the model without its adapter.
        positions: tokens that the model has room for; None where it does not say.
    """
    loader = "import hf_shrink  # tells transformers how to load this model\n" if "plugin" in (tier, base_tier) else ""
    if task in _SCRIPTS:
        script = _bounded(_SCRIPTS[task], _MOST.get(task), positions)
        return loader + script.replace(f'"{FOLDER}"', json.dumps(repo_id or FOLDER) + _branch(repo_id, revision))
    word = TASKS[task].pipeline if task in TASKS else task
    call = _bounded(_CALLS.get(word, 'print(model("Put a text here."))'), _MOST.get(word), positions)
    if tier == "adapter" and task in TASKS:
        auto, branch = TASKS[task].auto_class, _branch(repo_id, revision)
        where = f'{{"subfolder": "adapter"{_entry(repo_id, revision)}}}'
        return (
            f"{loader}from transformers import {auto}, AutoTokenizer, pipeline\n\n"
            f"name = {json.dumps(repo_id or FOLDER)}\n"
            f"base = {auto}.from_pretrained(name{branch})\n"
            f"base.load_adapter(name, adapter_kwargs={where})  # without it, only the quantised model\n"
            f"tokenizer = AutoTokenizer.from_pretrained(name{branch})\n"
            f"model = pipeline({json.dumps(word)}, model=base, tokenizer=tokenizer)\n{call}"
        )
    load = f"model = pipeline({json.dumps(word)}, model={json.dumps(repo_id or FOLDER)}{_branch(repo_id, revision)})"
    return f"{loader}from transformers import pipeline\n\n{load}\n{call}"


def graph_usage(task: str, repo_id: str | None = None, revision: str | None = None) -> str:
    """Python that opens the graph in ``onnx/`` with ONNX Runtime alone and, but for language models, runs it on a text.

    Arguments as in ``usage``.
    """
    name, branch = json.dumps(repo_id or FOLDER), _branch(repo_id, revision)
    fetch, graph = "", f'"{FOLDER}/onnx/model_quantized.onnx"'
    if repo_id is not None:
        fetch, graph = (
            "from huggingface_hub import hf_hub_download\n",
            f'hf_hub_download({name}, "onnx/model_quantized.onnx"{branch})',
        )
    opening = (
        f"import onnxruntime\n{fetch}from transformers import AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name}{branch})\n"
        f"session = onnxruntime.InferenceSession({graph})\n"
    )
    if task == "causal-lm":
        return f"{opening}print([each.name for each in session.get_inputs()])  # tokens, mask, places, and the cache"
    return (
        f'{opening}tokens = tokenizer("Put a text here.", return_tensors="np", return_token_type_ids=True)\n'
        "print(session.run(None, {each.name: tokens[each.name] for each in session.get_inputs()})[0])"
    )


def _bounded(code: str, tokens: int | None, positions: int | None) -> str:
    """Code with so many tokens to generate that they and the text before them fit into the model's positions."""
    if tokens is None:
        return code
    if positions is not None and positions < _ROOM:
        code = code.replace("Put the beginning of a text here.", "Text").replace("Put a text here.", "Text")
    most = tokens if positions is None else max(1, min(tokens, positions // 2))
    return code.replace("{tokens}", str(most))


def _entry(repo_id: str | None, revision: str | None) -> str:
    return f', "revision": {json.dumps(revision)}' if repo_id is not None and revision is not None else ""


def _branch(repo_id: str | None, revision: str | None) -> str:
    return f", revision={json.dumps(revision)}" if repo_id is not None and revision is not None else ""
