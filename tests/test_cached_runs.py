"""A recipe whose teacher is asked once, and recipes with several teachers. What these prevent: answers for another text or
from another teacher, and a refusal after hours of teacher training."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_shrink import Recipe, run
from hf_shrink.cli import app
from hf_shrink.distillation.distiller import Distiller
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import IntegrityError, MismatchError, RecipeError
from hf_shrink.pipeline import build_cache
from hf_shrink.plan import make_plan
from hf_shrink.quantization.bitsandbytes import stored_bits
from hf_shrink.quantization.config import QuantizationConfig
from hf_shrink.quantization.quantize import quantize
from tests.project import UNUSED
from tests.test_taught_runs import TRAINING, make
from tests.tiny import VOCABULARY, tiny_causal_lm, tiny_classifier, tiny_inputs, tiny_lm_tokenizer, tiny_tokenizer


def recipe(
    task: str = "text-classification",
    *,
    cache: str = "{folder: answers}",
    teacher: str = f"{{model: base, training: {TRAINING}}}",
    losses: str = "[{temperature: 2.0}]",
    start: str = "{layers: 2}",
    length: int = 32,
    combine: str = "null",
    more: str = "",
    output: str = "runs/cached",
) -> Recipe:
    return Recipe.from_text(f"""
version: 1
task: {task}
model: base
output_dir: {output}
data: {{dataset: data, max_length: {length}}}
student: {start}
teacher: {teacher}
cache: {cache}
distillation: {{losses: {losses}, combine: {combine}}}
training: {TRAINING}
measurement: {{batch_sizes: [1], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
{more}
""")


def hf_shrink(*words: str):
    return CliRunner().invoke(app, list(words))


def test_padding_that_moves_places_is_refused_before_the_teacher_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """BERT's answers about a row padded on the left belong to one batch; live, each batch gets its own."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    words = Path("base/tokenizer_config.json")
    words.write_text(json.dumps(json.loads(words.read_text()) | {"padding_side": "left"}))
    with pytest.raises(MismatchError, match="padded on the left"):
        make_plan(recipe())


def test_the_teacher_is_asked_once_and_the_student_learns_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache beside which the teacher still runs saves nothing."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    done = hf_shrink("cache", "recipe.yaml", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["rows"], told["of"], told["complete"]) == (64, 64, True) and told["key"]["max_length"] == "32"
    files = {path.name: path.read_bytes() for path in (tmp_path / "answers").iterdir()}

    def refuse(*_, **__):
        raise AssertionError("the teacher was run")

    for name in ("outputs", "__call__", "before"):
        monkeypatch.setattr(Teacher, name, refuse)
    read, found = Distiller.read, []
    monkeypatch.setattr(Distiller, "read", lambda self, steps: found.append(read(self, steps)) or found[-1])
    outcome = run(recipe())
    assert [stage["name"] for stage in outcome.report["stages"]] == ["teacher", "student"]
    assert any(terms.get("loss/forward_kl", 0) > 0 for terms in found)
    assert {path.name: path.read_bytes() for path in (tmp_path / "answers").iterdir()} == files

    for place in ("answers", "recipe.yaml"):
        shown = hf_shrink("cache", place, "--inspect")
        assert shown.exit_code == 0 and "64 of 64" in shown.stdout and "3 outputs a row" in shown.stdout
    damaged = bytearray(files["rows-00000.arrow"])
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "answers" / "rows-00000.arrow").write_bytes(damaged)
    shown = hf_shrink("cache", "answers", "--inspect")
    assert shown.exit_code == 5 and "sha256 differs" in shown.output

    other = recipe(length=16, output="runs/other")
    for stop in (make_plan, run, build_cache):
        with pytest.raises(IntegrityError, match=r"max_length \(32 -> 16\)"):
            stop(other)
    assert not (tmp_path / "runs/other").exists()


def test_words_of_a_language_model_are_kept_and_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Room and losses are known before the teacher is trained."""
    monkeypatch.chdir(make("causal-lm", tmp_path))
    chosen = recipe(
        "causal-lm", cache="{folder: answers, top_k: 5, dtype: float16}", losses="[{temperature: 2.0}, {loss: jsd}]"
    )
    (stage,) = [stage for stage in make_plan(chosen).stages if stage.name == "cache"]
    assert stage.writes == "answers" and "the likeliest 5 of 20 words and their rest" in stage.does[0]
    told = build_cache(chosen)
    assert told.layout["temperatures"] == [1.0, 2.0] and told.bytes == pytest.approx(stage.bytes, rel=0.5)
    assert [stage["name"] for stage in run(chosen).report["stages"]] == ["teacher", "student"]
    with pytest.raises(RecipeError, match=r"top_k: 21, but there are 20 words"):
        make_plan(recipe("causal-lm", cache="{folder: more, top_k: 21}"))


@pytest.mark.parametrize("change", ["data", "tokenizer", "teacher"])
def test_what_changed_since_the_answers_is_named(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Yesterday's answers for today's rows."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    shape = {"layers": 2, "hidden": 64, "ffn": 128, "vocab_size": len(VOCABULARY) + UNUSED}
    tiny_classifier(seed=3, **shape).save_pretrained("learned")
    tiny_tokenizer(unused=UNUSED).save_pretrained("learned")
    chosen = recipe(teacher="{model: learned}")
    build_cache(chosen)
    if change == "data":
        lines = (tmp_path / "data/train.csv").read_text().splitlines()
        (tmp_path / "data/train.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    if change == "tokenizer":
        for folder in ("base", "learned"):
            tokenizer = tiny_tokenizer(unused=UNUSED)
            tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
            tokenizer.save_pretrained(folder)
    if change == "teacher":
        tiny_classifier(seed=4, **shape).save_pretrained("learned")
    again = chosen.model_copy(update={"output_dir": "runs/again"})
    with pytest.raises(IntegrityError, match=rf"written for another {change}"):
        build_cache(again)


def several(folder: Path, task: str = "text-classification", words: int = UNUSED, **shape) -> str:
    """Two trained teachers beside the project, as a list for a recipe; ``shape`` is that of the second."""
    for name, seed in (("one", 3), ("two", 4)):
        size = {"layers": 3, "hidden": 64, "ffn": 128} | (shape if name == "two" else {})
        if task == "causal-lm":
            model, tokenizer = tiny_causal_lm("llama", seed=seed, pad_token_id=None, **size), tiny_lm_tokenizer()
        else:
            model = tiny_classifier(seed=seed, **{"vocab_size": len(VOCABULARY) + words} | size)
            tokenizer = tiny_tokenizer(unused=words)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return "[{model: one}, {model: two, dtype: bfloat16}]"


@pytest.mark.parametrize("cache", [pytest.param("null", marks=pytest.mark.slow), "{folder: answers}"])
def test_teachers_of_a_list_teach_together(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only the first of a list would teach without anyone noticing."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    made, begin = [], Ensemble.__init__
    monkeypatch.setattr(
        Ensemble, "__init__", lambda self, *a, **k: made.append((len(a[0]), k["combine"])) or begin(self, *a, **k)
    )
    chosen = recipe(teacher=several(tmp_path), cache=cache, combine="confidence")
    (stage,) = [stage for stage in make_plan(chosen).stages if stage.name == "teacher"]
    assert stage.does[0] == "takes one and two as they are, by confidence"
    assert [stage["name"] for stage in run(chosen).report["stages"]] == ["teacher", "student"]
    assert made == [(2, "confidence")]
    if cache != "null":
        with pytest.raises(IntegrityError, match=r"combine \(confidence -> mean\)"):
            run(recipe(teacher=several(tmp_path), cache=cache, combine="mean", output="runs/mean"))


@pytest.mark.parametrize(("bits", "cache"), [(4, "{folder: answers}"), pytest.param(8, "null", marks=pytest.mark.slow)])
def test_a_teacher_in_fewer_bits_says_what_its_quantised_folder_says(
    bits: int, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The word alone, with a teacher that stays in float, would save nothing."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    several(tmp_path)
    chosen = recipe(teacher=f"{{model: one, bits: {bits}}}", cache=cache)
    (stage,) = [stage for stage in make_plan(chosen).stages if stage.name == "teacher"]
    assert stage.does[::2] == ("takes one as it is", f"one teaches in {bits} bits and is measured in float")
    made, begin = [], Teacher.__init__
    monkeypatch.setattr(Teacher, "__init__", lambda self, model, **k: made.append(model) or begin(self, model, **k))
    (build_cache if cache != "null" else run)(chosen)
    (taught,) = made
    assert set(stored_bits(taught).values()) == {bits}
    stored = quantize(
        tiny_classifier(seed=3, vocab_size=len(VOCABULARY) + UNUSED, layers=3, hidden=64, ffn=128),
        QuantizationConfig(bits=bits),
    )
    batch = dict(tiny_inputs("bert"))
    with torch.no_grad():
        torch.testing.assert_close(taught(**batch).logits, stored(**batch).logits, rtol=0, atol=0)
    if cache != "null":
        assert json.loads(hf_shrink("cache", "answers", "--inspect", "--json").stdout)["key"]["teacher bits"] == "4"
        with pytest.raises(IntegrityError, match=r"another teacher bits \(4 -> 8\)"):
            make_plan(recipe(teacher="{model: one, bits: 8}"))
        with pytest.raises(IntegrityError, match=r"another teacher bits \(4 -> none\)|another .*teacher \("):
            build_cache(recipe(teacher="{model: one}", output="runs/float"))
    stored.save_pretrained("one")
    with pytest.raises(RecipeError, match=rf"teacher\.bits: .*quantised already \(bitsandbytes, {bits} bits\)"):
        make_plan(recipe(teacher=f"{{model: one, bits: {bits}}}", cache="null"))


def test_answers_under_bf16_are_those_of_a_training_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A student in bfloat16 would learn the rounding of the one that wrote, or lack its own."""
    monkeypatch.chdir(make("text-classification", tmp_path))
    several(tmp_path)
    with_16_bits = recipe(teacher="{model: one}").model_copy(update={"training": recipe().training | {"bf16": True}})
    build_cache(with_16_bits)
    assert json.loads(hf_shrink("cache", "answers", "--inspect", "--json").stdout)["key"]["autocast"] == "bfloat16"
    run(with_16_bits)
    with pytest.raises(IntegrityError, match=r"another autocast \(bfloat16 -> none\)"):
        make_plan(recipe(teacher="{model: one}"))


def test_each_teacher_of_a_list_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second one lacks words, which would stop the first step; or pads them, and that costs nothing."""
    monkeypatch.chdir(make("causal-lm", tmp_path))
    listed = several(tmp_path, "causal-lm", vocab_size=len(VOCABULARY) - 3)
    with pytest.raises(MismatchError, match="the teacher's vocabulary has 17 entries"):
        make_plan(recipe("causal-lm", teacher=listed, cache="null"))
    listed = several(tmp_path, "causal-lm", vocab_size=len(VOCABULARY) + 8)
    build_cache(recipe("causal-lm", teacher=listed, cache="{folder: answers, top_k: 20}"))
    assert json.loads(hf_shrink("cache", "answers", "--inspect", "--json").stdout)["layout"]["outputs"] == 20


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"losses": "[{loss: hidden_mse}]"}, r"losses\.0\.loss: reads hidden, but a cache holds the logits alone"),
        ({"cache": "{folder: answers, top_k: 4}"}, r"cache\.top_k: would be ignored: of text-classification"),
        ({"cache": "{folder: runs/cached/answers}"}, r"cache\.folder: lies in output_dir"),
        ({"cache": "{folder: ./runs/cached}"}, r"cache\.folder: lies in output_dir"),
        ({"task": "causal-lm", "losses": "[{loss: logit_mse}]"}, r"losses\.0\.loss: needs every word"),
        ({"task": "causal-lm", "losses": "[{temperature_end: 2.0}]"}, r"temperature_end: a cache knows"),
        ({"combine": "mean"}, r"combine: would be ignored: there is one teacher"),
        ({"teacher": "[{model: one}]", "combine": "mean"}, r"combine: would be ignored: there is one teacher"),
        ({"teacher": f"{{model: base, bits: 8, training: {TRAINING}}}"}, r"teacher: bits: a quantised teacher does not learn"),
        ({"teacher": "[]"}, r"teacher: must not be empty"),
        ({"teacher": "[{model: one}, {modle: two}]"}, r"teacher\.1\.modle: unknown key.*model"),
        ({"teacher": f"[{{model: one}}, {{model: two, training: {TRAINING}}}]"}, r"teacher\.1\.training: a list is of trained"),
        ({"teacher": "[{model: one}, {model: two}]", "losses": "[{loss: pkd}]", "cache": "null"}, "several teachers share"),
        ({"teacher": "[{model: one}, {model: base}]", "start": "{start: teacher}"}, r"student\.start: of several teachers"),
        ({"teacher": "[{model: 'package:a', revision: x}, {model: two}]"}, r"teacher\.0\.revision: would be ignored"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused_by_the_recipe(words: dict, says: str):
    with pytest.raises(RecipeError, match=says):
        recipe(**words)


def test_a_cache_without_distillation_is_refused():
    text = "version: 1\ntask: causal-lm\nmodel: base\noutput_dir: o\ndata: {dataset: d}\ncache: {folder: c}\n"
    with pytest.raises(RecipeError, match="cache: would be ignored: nothing is distilled"):
        Recipe.from_text(text)


def test_a_recipe_with_cache_and_list_comes_back_from_its_own_yaml():
    chosen = recipe(teacher="[{model: one}, {model: two, revision: main}]", combine="confidence")
    assert Recipe.from_text(chosen.to_yaml()) == chosen and [each.model for each in chosen.teachers] == ["one", "two"]


# ---- a teacher that has nothing to say ----
