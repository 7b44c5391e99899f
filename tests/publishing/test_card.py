"""The card says what the report says, nothing else, and can always be read again."""

import json
import re

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.publishing.card import check, render
from hf_shrink.publishing.metadata import metadata
from tests.publishing.report import number, report, stage


def without_marks(card: str) -> str:
    return re.sub(r"<!-- hf_shrink: .*? -->", "", ModelCard(card).text)


def test_the_card_loads_with_the_hub_s_own_reader(tmp_path):
    """Metadata that cannot be parsed makes the Hub show a bare page."""
    path = tmp_path / "README.md"
    path.write_text(render(report()), encoding="utf-8")
    data = ModelCard.load(path).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification"
    assert data.license == "apache-2.0" and data.language == ["en"]
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert data.datasets == ["nyu-mll/glue"] and data.metrics == ["accuracy"]
    assert data.tags == ["hf-shrink", "distilled", "pruned", "quantized", "int8", "medical"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, type(result.metric_value)) == ("accuracy", 78.0, float)
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "sst2", "test")
    assert data.to_dict()["hf_shrink"] == {"version": "0.1.0", "recipe_sha256": "ab" * 32}


def test_the_verdict_is_computed_and_says_what_got_worse():
    """90 MB to 45 MB is 2.0x; 14 ms to 21 ms is 1.5x slower; 78 of 80 is 97.5 %."""
    card = render(report())
    verdict = next(line for line in card.splitlines() if line.startswith("**"))
    assert verdict == (
        "**2.0x smaller on disk, 1.5x slower at batch 1, 2.0x faster at batch 32, 97.5 % of the accuracy** of MiniLM-L6 "
        "(timed on cpu, 2 threads, 64 tokens, 20 rounds after 3)."
    )
    assert "8 bits: latency p50 at batch 1 is 3.50x that of 3 layers" in card


def test_every_number_of_the_table_is_in_the_report():
    """A table typed by hand, or a column that slipped, looks just as convincing."""
    data = report()
    card = render(data)
    table = card.split("## At a glance")[1].split("\n- ")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()]
    names = [s["title"] for s in data["stages"]]
    assert [title.replace("(baseline)", "").strip() for title in lines[0][1:]] == names
    found = 0
    for row in lines[2:]:
        for column, text in enumerate(row[1:]):
            text = text.strip().replace("\\", "")
            if not text or "weights stored" in row[0]:
                continue
            found += 1
            assert any(text.startswith(shown) for shown in shown_values(data, column)), (row[0], text)
    assert found == 4 + 3 + 3 + 4 * 3


def shown_values(data, column):
    """Every way a number of this stage may be written, worked out anew."""
    base = {m["name"]: m["value"] for m in data["stages"][1]["measurements"]}
    for m in data["stages"][column]["measurements"]:
        value = m["value"]
        if m["unit"] == "%":
            yield f"{value:.1f} % [{m['interval'][0]:.1f}, {m['interval'][1]:.1f}]"
            yield f"{value - base[m['name']]:+.1f} points"
            yield f"{100 * value / base[m['name']]:.1f} %"
        elif m["unit"] == "ms":
            yield f"{value:g} ms"
        else:
            yield f"{value / 1e6:g} M"


def test_a_missing_measurement_takes_its_row_and_its_sentence_along():
    """A verdict without a measured file would be an invention."""
    data = report()
    for entry in data["stages"]:
        entry["measurements"] = [m for m in entry["measurements"] if m["name"] == "accuracy"]
    card = render(data)
    assert (
        "on disk" not in card and "latency" not in card.split("## Limits")[0] and "batch" not in card.split("## Reproduce")[0]
    )
    assert "**97.5 % of the accuracy** of MiniLM-L6." in card
    for entry in data["stages"]:
        entry["measurements"] = []
    bare = render(data | {"remarks": []})
    assert "At a glance" not in bare and "**97" not in bare and "Evaluation" not in bare and "Limits" not in bare


def test_an_empty_report_makes_a_card_without_a_claim():
    """Every sentence hangs on a value; with no value there is only the title."""
    card = render({})
    assert ModelCard(card).data.to_dict() == {"library_name": "transformers", "tags": ["hf-shrink"]}
    assert without_marks(card).split() == ["#", "model"]


@pytest.mark.parametrize("key", sorted(set(report()) - {"stages"}))
def test_any_part_may_be_missing_or_null(key):
    """A report of an older version must not end in a template error."""
    data = report()
    render({name: value for name, value in data.items() if name != key})
    render(data | {key: None})


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"bits": 4, "quant_type": "nf4"}, ["quantized", "nf4"]),
        ({"bits": 16, "dtype": "bfloat16"}, ["quantized", "bfloat16"]),
        ({"bits": 8}, ["quantized", "int8"]),
    ],
)
def test_tags_name_the_number_format(section, expected):
    data = report()
    data["recipe"]["quantization"] = section
    assert metadata(data, None)["tags"][3:5] == expected


def test_the_code_on_the_card_runs(tmp_path, monkeypatch):
    """A snippet that was never executed is the first thing a user copies."""
    from tests.tiny import tiny_classifier, tiny_tokenizer

    folder = tmp_path / "folder"
    tiny_classifier("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    snippet = re.search(r"```python\n(.*?)```", render(report()), re.DOTALL)[1]
    printed: list[object] = []
    exec(snippet.replace("path/to/this/folder", folder.as_posix()), {"print": printed.append})
    assert printed[0][0]["label"] in {"red", "green", "blue"}
    assert "import hf_shrink" in render(report(tier="plugin")) and "import hf_shrink" not in snippet


@pytest.mark.parametrize(
    ("precision", "tier", "base", "told"),
    [
        ("4-bit", "stock", None, True),
        ("4-bit", "plugin", None, False),
        ("4-bit", "adapter", "stock", True),
        ("4-bit", "adapter", "plugin", False),
        ("8-bit", "stock", None, False),
    ],
)
def test_the_card_warns_of_the_cpus_that_repack_four_bits(precision, tier, base, told):
    """Loaded by plain transformers on such a CPU, a model that was evaluated is saved and trained wrong, without an error."""
    data = report(tier=tier) | ({"recovery": {"base_tier": base, "kl": [None, None]}} if base else {})
    data["stages"][-1] = stage("quantized", "4 bits", 78.0, 14_000_000, 45_000_000, 21.0, 200.0, precision=precision)
    assert ("load the model again before you save or train it" in render(data)) == told


def test_the_recipe_on_the_card_is_the_recipe():
    """Reproduction rests on it: a fence closed early by backticks in a value would cut it."""
    data = report()
    data["recipe"]["training"] = {"run_name": "a ``` b\n````\nc", "learning_rate": 1e-4}
    card = render(data)
    fence, text = re.search(r"\n(`{3,})yaml\n(.*?)\n\1\n", card, re.DOTALL).groups()
    assert len(fence) == 5
    assert yaml.safe_load(text)["training"] == data["recipe"]["training"]


def test_numpy_numbers_and_non_finite_ones():
    """A numpy float in the metadata writes a card that can never be loaded again; NaN is no result."""
    data = report()
    data["stages"][3]["measurements"][0]["value"] = np.float64(78.0)
    assert "python/object" not in render(data)
    data["stages"][3]["measurements"][0]["value"] = float("nan")
    with pytest.raises(RecipeError):
        render(data)


def test_a_card_that_was_changed_does_not_pass_the_check():
    """The check must be able to fail."""
    card = render(report())
    head = yaml.safe_load(card.split("---\n")[1])
    check(card, head)
    for wrong in (
        card.replace("value: 78.0", "value: 87.0"),
        card.replace("license: apache-2.0\n", ""),
        "no front matter",
        "---\na: [\n---\n",
    ):
        with pytest.raises(IntegrityError):
            check(wrong, head)


def test_rendering_is_repeatable_and_leaves_the_report_alone():
    data = report()
    before = json.dumps(data)
    assert render(data) == render(data) and json.dumps(data) == before


def test_one_stage_alone_has_no_verdict():
    """A model is not smaller than itself."""
    card = render(report(stages=[stage("student", "student", 78.0, 1e7, 4e7, 5.0, 90.0)], baseline="student"))
    assert "smaller" not in card and "At a glance" in card
    assert number("x", 1.0, "ms")["setting"] == ""


def test_a_graph_beside_the_model_has_a_verdict_of_its_own():
    """Its scores in the metadata would be those of a file that from_pretrained does not load. 90 MB to 22.5 MB is 4.0x."""
    data = report()
    graph = stage("onnx", "ONNX Runtime, int8", 76.0, precision="int8")
    where = "cpu, 2 threads, batch {}, 64 tokens, 20 rounds after 3, int8"
    graph["measurements"] += [
        number("bytes_on_disk", 22_500_000, "bytes", "*.onnx"),
        number("latency_p50", 4.0, "ms", where.format(1)),
    ]
    beside = render({**data, "stages": [*data["stages"], graph], "onnx": {"files": ["model_quantized.onnx"]}})
    alone = next(line for line in render(data).splitlines() if line.startswith("**"))
    assert next(line for line in beside.splitlines() if line.startswith("**")) == alone
    told = next(line for line in beside.splitlines() if line.startswith("Served by ONNX Runtime"))
    assert "**4.0x smaller on disk, 3.5x faster at batch 1, 95.0 % of the accuracy** of MiniLM-L6" in told
    assert [m["value"] for m in ModelCard(beside).data.to_dict()["model-index"][0]["results"][0]["metrics"]] == [78.0]
