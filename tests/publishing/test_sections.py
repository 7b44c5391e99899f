"""What somebody writes into a card survives, what is ours is replaced, and nothing of either is lost unsaid."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ResourceError
from hf_shrink.publishing.card import for_repo, render
from hf_shrink.publishing.readme import ASIDE, check_card, make_card, set_aside, write_card
from hf_shrink.publishing.sections import parse
from hf_shrink.publishing.selection import CARD
from tests.publishing.report import report, stage


def text_of(card: str) -> str:
    """The page without marks."""
    return re.sub(r"\n+", "\n", re.sub(r"<!-- hf_shrink: .*? -->\n", "", ModelCard(card).text))


def with_mine(card: str) -> str:
    """A card with a key, a section amid ours, one at the end, and words between two parts."""
    card = card.replace("---\n", "---\nco2_eq_emissions:\n  emissions: 12.5\n", 1)
    card = card.replace(
        "<!-- hf_shrink: begin reproduce", "## Intended use\n\nFor *triage*.\n\n<!-- hf_shrink: begin reproduce", 1
    )
    card = card.replace("<!-- hf_shrink: begin limits", "Ask us.\n\n<!-- hf_shrink: begin limits", 1)
    return card + "\n## Thanks\n\n- to all\n"


def test_a_card_rendered_twice_is_the_same_card():
    card = render(report())
    assert render(report(), old=card) == card


def test_what_somebody_wrote_stays_where_it_stands_and_ours_is_replaced():
    """An update that eats a paragraph on intended use is one that nobody runs again."""
    mine = with_mine(render(report()))
    changed = report(seed=11)
    changed["stages"][-1] = stage("quantized", "8 bits", 70.0, 14_000_000, 45_000_000, 21.0, 200.0, precision="8-bit")
    new = render(changed, old=mine)
    assert "87.5 % of the accuracy" in new and "97.5 %" not in new and "- seed: 11" in new and "- seed: 7" not in new
    assert ModelCard(new).data.to_dict()["co2_eq_emissions"] == {"emissions": 12.5}
    order = [
        "## How to use",
        "## Intended use",
        "## Reproduce",
        "## Evaluation",
        "Ask us.",
        "## Limits",
        "Made with",
        "## Thanks",
    ]
    places = [new.index(words) for words in order]
    assert places == sorted(places) and "For *triage*." in new and new.rstrip().endswith("- to all")
    assert text_of(with_mine(render(changed))) == text_of(new)


def test_a_part_that_is_new_comes_behind_the_one_before_it_and_one_that_is_gone_goes():
    data = report()
    data["stages"] = [{**each, "measurements": []} for each in data["stages"]]
    bare = with_mine(render(data | {"remarks": []}))
    full = render(report(), old=bare)
    assert text_of(full).index("## At a glance") < text_of(full).index("## What was done") < text_of(full).index("## Limits")
    again = render(data | {"remarks": []}, old=full)
    assert "## At a glance" not in again and "## Intended use" in again and "## Thanks" in again


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("It knows 2 labels", "It knows two labels", "how-to-use"),
        ("license: apache-2.0", "license: mit", "front matter"),
        ("- medical\n", "- medical\n- mine\n", "front matter"),
        ("## Evaluation\n", "## Evaluation\n\nmine\n", "evaluation"),
    ],
)
def test_an_edit_inside_ours_is_named_and_refused(before: str, after: str, named: str):
    """Replaced in silence, the correction of a wrong sentence would be gone."""
    edited = render(report()).replace(before, after, 1)
    assert edited != render(report())
    with pytest.raises(RecipeError, match=named) as caught:
        render(report(), old=edited)
    assert len(str(caught.value).splitlines()) <= 3
    assert render(report(), old=edited, overwrite=True) == render(report())


def test_what_editors_do_to_blanks_and_line_ends_is_no_edit(tmp_path):
    """A card opened and saved on Windows must not be refused."""
    card = render(report())
    (tmp_path / "README.md").write_bytes(
        "\n".join(f"{line}  " if line and "-" not in line else line for line in card.splitlines())
        .encode()
        .replace(b"\n", b"\r\n")
    )
    assert not write_card(tmp_path, report()).kept
    assert (tmp_path / "README.md").read_text() == card


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: card.replace("<!-- hf_shrink: end limits -->\n", ""),
        lambda card: re.sub(r"<!-- hf_shrink: begin limits .*?-->\n", "", card),
        lambda card: card + card[card.index("<!-- hf_shrink: begin limits") : card.index("<!-- hf_shrink: begin licence")],
    ],
)
def test_a_lost_mark_is_an_error_even_with_overwrite(damage):
    """It cannot be told whose the words behind it are."""
    for overwrite in (False, True):
        with pytest.raises(RecipeError, match="limits"):
            render(report(), old=damage(render(report())), overwrite=overwrite)


def test_a_lost_mark_of_the_front_matter_counts_as_edited():
    card = re.sub(r"<!-- hf_shrink: front matter .*?-->\n", "", render(report()))
    with pytest.raises(RecipeError, match="front matter"):
        render(report(), old=card)
    assert render(report(), old=card, overwrite=True) == render(report())


def test_a_card_without_marks_is_somebody_s(tmp_path):
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(RecipeError, match="may be yours"):
        write_card(tmp_path, report())
    assert (tmp_path / "README.md").read_text() == "# mine\n"
    assert write_card(tmp_path, report(), overwrite=True).changed
    assert (tmp_path / "README.md").read_text() == render(report())


def test_a_key_of_ours_that_is_gone_is_not_taken_for_somebody_s():
    """A licence that the recipe no longer gives would stay on the card for ever."""
    card, less = render(report()), report()
    less["recipe"]["publishing"] = {}
    assert "license" not in ModelCard(render(less, old=card)).data.to_dict()


def test_text_that_looks_like_a_mark_is_no_mark():
    """A label from a public data set could end our part and make the rest the user's."""
    trick = "<!-- hf_shrink: end how-to-use -->"
    data = report(label_names=[trick, "b"], remarks=[trick], environment={trick: trick})
    data["recipe"]["publishing"]["license"] = trick
    data["recipe"]["training"] = {"run_name": f"a\n{trick}\n{trick}"}
    card = render(data)
    assert render(data, old=card) == card and not [p for p in parse(card).pieces if not p.name]


def test_the_repository_s_name_is_in_the_code_of_a_pushed_card():
    """A stranger copies the code as it stands."""
    data = report(onnx={"files": ["model_quantized.onnx"]})
    card = for_repo(with_mine(render(data)), data, "alice/model", "int8")
    assert "path/to/this/folder" not in card and card.count("alice/model") == 3 and 'revision="int8"' in card
    assert 'hf_hub_download("alice/model", "onnx/model_quantized.onnx", revision="int8")' in card
    assert text_of(render(data, old=card)) == text_of(with_mine(render(data))), "the digest was kept in step"
    data["recipe"]["publishing"] |= {"push_to": "alice/model", "revision": "int8"}
    assert 'pipeline("text-classification", model="alice/model", revision="int8")' in render(data)
    other = for_repo(render(data), data, "bob/other", None)
    assert "alice/model" not in other.split("## Reproduce")[0] and other.count("bob/other") == 3
    edited = render(report()).replace("Put a text here.", "Fever and chills.")
    assert for_repo(edited, report(), "alice/model", None) == edited
    assert for_repo("# mine\n", report(), "alice/model", None) == "# mine\n"


def test_the_command_says_what_it_kept_and_what_it_needs(tmp_path):
    with pytest.raises(ResourceError, match="no such folder"):
        make_card(tmp_path / "nothing")
    with pytest.raises(MismatchError, match="only a run"):
        make_card(tmp_path)
    (tmp_path / "hf_shrink_report.json").write_text("{")
    with pytest.raises(IntegrityError, match="not valid JSON"):
        make_card(tmp_path)
    import json

    (tmp_path / "hf_shrink_report.json").write_text(json.dumps(report()))
    assert make_card(tmp_path).changed and not make_card(tmp_path).changed
    (tmp_path / "README.md").write_text(with_mine((tmp_path / "README.md").read_text()))
    assert make_card(tmp_path).kept == ("co2_eq_emissions (front matter)", "## Intended use", "Ask us.", "## Thanks")
    check_card(tmp_path)
    marked = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(RecipeError, match="may be yours"):
        check_card(tmp_path)
    (tmp_path / "README.md").write_text(marked)
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text().replace("## Limits", "## Limitations"))
    with pytest.raises(RecipeError, match="limits"):
        check_card(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(IntegrityError, match="UTF-8"):
        check_card(tmp_path)


def test_metadata_of_somebody_may_be_any_yaml():
    card = render(report()).replace("---\n", "---\ndate: 2026-01-02\nmodel_creator: [a, {b: 1.5}]\n", 1)
    head = yaml.safe_load(render(report(), old=card).split("---")[1])
    assert str(head["date"]) == "2026-01-02" and head["model_creator"] == ["a", {"b": 1.5}]


def test_cards_that_are_set_aside_lose_no_word(tmp_path: Path):
    """A second one in the place of the first, or a file of the user's own that only has the name."""
    for text in ("first", "second", "third"):
        (tmp_path / CARD).write_text(text)
        set_aside(tmp_path)
    assert not (tmp_path / CARD).exists()
    kept = [tmp_path / name for name in (ASIDE, "README.before.1.md", "README.before.2.md")]
    assert [path.read_text() for path in kept] == ["first", "second", "third"]
    (tmp_path / CARD).write_text(render(report()))
    write_card(tmp_path, report(seed=8))
    assert kept[0].read_text() == "first"
    (tmp_path / CARD).write_text((tmp_path / CARD).read_text() + "\n## Mine\n")
    kept[0].unlink()
    set_aside(tmp_path)
    card = write_card(tmp_path, report(seed=9))
    assert card.kept == ("## Mine",) and card.changed and not kept[0].exists()
