"""What transformers.js makes of an export, in Node, from the local folder: ``make browser``."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_shrink import OnnxModel, export_onnx
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

pytestmark = pytest.mark.browser

VERSION = "4.3.1"
CLASSIFY = """
import { env, AutoModelForSequenceClassification, AutoTokenizer } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const tokenizer = await AutoTokenizer.from_pretrained("model");
const model = await AutoModelForSequenceClassification.from_pretrained("model", { dtype: "q8", device: "cpu" });
const tokens = await tokenizer(JSON.parse(process.argv[3]), { padding: true });
console.log(JSON.stringify((await model(tokens)).logits.tolist()));
"""
GENERATE = """
import { env, AutoModelForCausalLM, Tensor } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const model = await AutoModelForCausalLM.from_pretrained("model", { dtype: "q8", device: "cpu" });
const ids = JSON.parse(process.argv[3]);
const as = (values) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), [1, values.length]);
const found = await model.generate({
    inputs: as(ids), attention_mask: as(ids.map(() => 1)), max_new_tokens: 8, min_new_tokens: 8, do_sample: false,
});
console.log(JSON.stringify(found.tolist().map((row) => row.map(Number))));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds transformers.js."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"@huggingface/transformers@{VERSION}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=500)
    return folder


def said(node: Path, script: str, folder: Path, argument: Any) -> Any:
    (node / "script.mjs").write_text(script)
    command = ["node", "script.mjs", str(folder), json.dumps(argument)]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_classifier_gives_the_logits_of_onnxruntime(node: Path, tmp_path: Path):
    """Files under other names, or inputs that it does not fill, and nobody can use the export in a browser."""
    tokenizer, texts = tiny_tokenizer(), ["red house", "the blue stone of a river"]
    export_onnx(tiny_classifier("bert"), tmp_path / "model", tokenizer=tokenizer)
    here = OnnxModel.from_pretrained(tmp_path / "model")(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(said(node, CLASSIFY, tmp_path, texts)), here, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_generates_with_its_cache(family: str, node: Path, tmp_path: Path):
    export_onnx(tiny_causal_lm(family), tmp_path / "model", tokenizer=tiny_tokenizer())
    ids = [5, 6, 7, 8]
    words = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    here = OnnxModel.from_pretrained(tmp_path / "model").generate(torch.tensor([ids]), **words)
    assert said(node, GENERATE, tmp_path, ids) == here.tolist()
