"""What loads without the plugin and what fails cleanly, in a process where hf_shrink cannot be imported, and a real model under
inductor."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from hf_shrink import QuantizationConfig, quantize
from tests.loading.cuts import TIERS, cut_classifier, first_output
from tests.loading.test_matrix import needs_plugin
from tests.tiny import ALL_FAMILIES, tiny_classifier, tiny_inputs

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_shrink":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


TABLES = {
    "bfloat16": {"bits": 16, "embeddings": "bfloat16"},
    "bfloat16 beside codes": {"bits": 8, "embeddings": "bfloat16"},
    "int8": {"bits": 16, "embeddings": "int8"},
}

ASK = """
import json, torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
answers = {}
for entry in json.load(open(sys.argv[1])):
    cases = torch.load(entry + "/case.pt")
    try:
        model = getattr(transformers, cases["class"]).from_pretrained(entry).eval()
    except Exception as error:
        answers[entry] = f"{type(error).__name__}: {error}"
        continue
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        answers[entry] = (model(**cases["inputs"])[0] - cases["logits"]).abs().max().item()
assert "hf_shrink" not in sys.modules
print(json.dumps(answers))
"""


def test_without_the_plugin_stock_folders_load_and_the_others_fail_over_sizes(tmp_path: Path):
    """Random weights in place of those that do not fit would be taken for the model, and so would codes of 8 bits."""
    folders = []
    models = [(family, tier, cut_classifier(family, tier)) for family in ALL_FAMILIES for tier in TIERS]
    model = tiny_classifier("bert", hidden=64, ffn=128)
    models += [("bert", name, quantize(model, QuantizationConfig(**words))) for name, words in TABLES.items()]
    for family, tier, small in models:
        folder = tmp_path / f"{family}-{tier}"
        small.save_pretrained(folder)
        case = {"class": type(small).__name__, "inputs": tiny_inputs(family), "logits": first_output(small, family)}
        torch.save(case, folder / "case.pt")
        folders.append(str(folder))
    (tmp_path / "folders.json").write_text(json.dumps(folders))
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + ASK, str(tmp_path / "folders.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == len(TIERS) * len(ALL_FAMILIES) + len(TABLES)
    for folder, answer in answers.items():
        family, tier = Path(folder).name.split("-")
        if tier == "bfloat16" or (tier not in TABLES and not needs_plugin(family, tier)):
            assert answer == 0.0, f"{Path(folder).name}: {answer}"
        else:
            assert isinstance(answer, str) and "mismatch" in answer.lower(), f"{Path(folder).name}: {answer}"
