"""The file for users who trust a repository's code: it builds the same model, only when allowed, and only without hf_shrink."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_shrink import QuantizationConfig
from hf_shrink.errors import IntegrityError, MismatchError
from hf_shrink.loading.remote_code import add_remote_code
from hf_shrink.loading.save import record_shapes, save
from hf_shrink.quantization.quantize import quantize
from tests.loading.cuts import assert_same, cut, cut_classifier, first_output, noisy
from tests.tiny import ALL_FAMILIES, tiny_causal_lm, tiny_inputs

ASK = """
import json, sys, torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
if sys.argv[2] == "plugin":
    import hf_shrink
else:
    sys.modules["hf_shrink"] = None

def answer(case, trust):
    try:
        options = {} if trust == "unsaid" else {"trust_remote_code": trust == "yes"}
        model = getattr(transformers, case["auto"]).from_pretrained(case["folder"], **options).eval()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    if trust == "yes" and case["auto"] != "AutoModel":
        model.save_pretrained(case["folder"] + "-again")
    with torch.no_grad():
        difference = (model(**case["inputs"])[0] - case["logits"]).abs().max().item()
    return [type(model).__module__.split(".")[0], difference]

cases = torch.load(sys.argv[1])
print(json.dumps({trust: {case["name"]: answer(case, trust) for case in cases} for trust in ("unsaid", "no", "yes")}))
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All families with a head and without; of three a language model or another width; and a file that says what to expect."""
    root = tmp_path_factory.mktemp("remote")
    made = []
    models = {f"{family}-{tier}": (family, cut_classifier(family, tier)) for family in ALL_FAMILIES for tier in ("plugin",)}
    models["bert-hidden"] = ("bert", cut_classifier("bert", "hidden"))
    models["llama-lm"] = ("llama", cut(noisy(tiny_causal_lm("llama")), "plugin"))
    for name, (family, model) in models.items():
        folder = root / name
        model.save_pretrained(folder)
        add_remote_code(folder)
        kind = {"vit": "AutoModelForImageClassification", "llama-lm": "AutoModelForCausalLM"}
        auto = kind.get(name, kind.get(family, "AutoModelForSequenceClassification"))
        inputs, entry = tiny_inputs(family), {"folder": str(folder)}
        made.append(entry | {"name": name, "auto": auto, "inputs": inputs, "logits": first_output(model, family)})
        if family in ("bert", "gpt2") and name.endswith("plugin"):
            base = first_output(model.base_model, family)
            made.append(entry | {"name": f"{name}-base", "auto": "AutoModel", "inputs": inputs, "logits": base})
    torch.save(made, root / "cases.pt")
    return root / "cases.pt"


def ask(cases: Path, plugin: str) -> dict[str, dict[str, object]]:
    """What comes of every case, by what is said about trust."""
    command = [sys.executable, "-c", ASK, str(cases), plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert all(len(found) == len(ALL_FAMILIES) + 4 for found in answers.values())
    return answers


def test_without_the_plugin_trusted_code_builds_the_same_model_and_nothing_else_does(cases: Path):
    """Random weights in place of those that do not fit, or code that runs unasked."""
    answers = ask(cases, "alone")
    for name, answer in answers["yes"].items():
        assert answer == ["transformers_modules", 0.0], f"{name}: {answer}"
    for name, answer in [*answers["no"].items(), *answers["unsaid"].items()]:
        assert isinstance(answer, str) and "mismatch" in answer.lower(), f"{name}: {answer}"
    for family in ("bert", "gpt2", "llama"):
        again = AutoModelForSequenceClassification.from_pretrained(cases.parent / f"{family}-plugin-again")
        assert_same(cut_classifier(family, "plugin"), again, family, "saved by the trusted class")


@pytest.mark.slow
def test_with_the_plugin_no_trust_is_needed_and_trust_does_no_harm(cases: Path):
    """Both resize the model; done twice, attention would be scaled twice."""
    answers = ask(cases, "plugin")
    for trust, module in {"unsaid": "transformers", "no": "transformers", "yes": "transformers_modules"}.items():
        for name, answer in answers[trust].items():
            assert answer == [module, 0.0], f"trust {trust}, {name}: {answer}"


def test_the_file_is_short_and_imports_nothing_else(tmp_path: Path):
    save(cut_classifier("t5", "plugin"), tmp_path)
    text = add_remote_code(tmp_path).read_text()
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = [node.names[0].name if isinstance(node, ast.Import) else node.module for node in found]
    assert sorted(imported) == ["torch", "torch", "transformers"] and len(text.splitlines()) < 80
    assert text.count("class T5ForSequenceClassification(") == 1 and text.count("class T5Model(") == 1


def test_a_second_call_changes_nothing(tmp_path: Path):
    save(cut_classifier("bert", "plugin"), tmp_path)
    add_remote_code(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    add_remote_code(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_that_the_plugin_loaded_is_saved_without_the_name_of_a_file_that_is_not_there(tmp_path: Path):
    """Saving copies no code, so auto_map would send trusting users to a missing file."""
    save(cut_classifier("bert", "plugin"), tmp_path / "one")
    plain = (tmp_path / "one" / "config.json").read_text()
    add_remote_code(tmp_path / "one")
    assert "auto_map" in json.loads((tmp_path / "one" / "config.json").read_text())
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "config.json").read_text() == plain


def test_what_it_would_not_help_is_refused(tmp_path: Path):
    save(cut_classifier("bert", "stock"), tmp_path / "stock")
    with pytest.raises(MismatchError, match="needs no code of ours"):
        add_remote_code(tmp_path / "stock")
    small = quantize(cut_classifier("bert", "plugin", hidden=128, ffn=256), QuantizationConfig(bits=8))
    record_shapes(small)
    small.save_pretrained(tmp_path / "int8")
    with pytest.raises(MismatchError, match="it is quantised"):
        add_remote_code(tmp_path / "int8")
    save(cut_classifier("bert", "plugin"), tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"auto_map": {"AutoModel": "theirs.Model"}}))
    with pytest.raises(MismatchError, match="code of its own already"):
        add_remote_code(tmp_path / "odd")
    path.write_text(json.dumps(good | {"architectures": ["Unheard"]}))
    with pytest.raises(MismatchError, match="Unheard"):
        add_remote_code(tmp_path / "odd")
    path.write_text("{")
    with pytest.raises(IntegrityError, match="not valid JSON"):
        add_remote_code(tmp_path / "odd")
    assert not (tmp_path / "odd" / "modeling_hf_shrink.py").exists()
    with pytest.raises(MismatchError, match=r"no config\.json"):
        add_remote_code(tmp_path)
