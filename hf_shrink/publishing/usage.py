"""The few lines that use a published model."""

import json

from hf_shrink.tasks import TASKS

_CALLS = {
    "token-classification": 'print(model("Put a text here.", aggregation_strategy="simple"))',
    "text-generation": 'print(model("Put the beginning of a text here.", max_new_tokens=40)[0]["generated_text"])',
}


def usage(task: str, tier: str | None) -> str:
    """Python that loads the model with ``transformers.pipeline`` and calls it once.

    Args:
        task: a name of ``TASKS``; another one is taken for the Hub's own word.
        tier: ``plugin`` where transformers must be told how to load it.
    """
    loader = "import hf_shrink  # tells transformers how to load this model\n" if tier == "plugin" else ""
    word = TASKS[task].pipeline if task in TASKS else task
    call = _CALLS.get(word, 'print(model("Put a text here."))')
    load = f'model = pipeline({json.dumps(word)}, model="path/to/this/folder")'
    return f"{loader}from transformers import pipeline\n\n{load}\n{call}"


def graph_usage(task: str) -> str:
    """Python that opens the graph in ``onnx/`` with ONNX Runtime alone and, but for language models, runs it on a text."""
    opening = (
        "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        'session = onnxruntime.InferenceSession("path/to/this/folder/onnx/model_quantized.onnx")\n'
    )
    if task == "causal-lm":
        return f"{opening}print([each.name for each in session.get_inputs()])  # tokens, mask, places, and the cache"
    return (
        f'{opening}tokens = tokenizer("Put a text here.", return_tensors="np")\n'
        "print(session.run(None, {each.name: tokens[each.name] for each in session.get_inputs()})[0])"
    )
